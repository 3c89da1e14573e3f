"""Move the map of ids out of the model: preprocessing writes the small ids, serving has a plain small table.

before   id -> position[id] (4 bytes an id) -> row            after   new id -> row
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lessen.errors import NothingMatchedError
from lessen.methods.sites import Site, replace
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.task import Split, Task


def rewrite(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of `model` whose pruned tables are plain embeddings, and by path the new id of each old id.

    With ids mapped by `new[old]` the copy gives the same outputs bit for bit. Dropped ids share the last row of the
    table; padding keeps its id. Each map is int32 [old rows] and belongs into preprocessing.

    Raises:
        NothingMatchedError: the model holds no pruned table.
    """
    changed = copy.deepcopy(model)
    maps: dict[str, Tensor] = {}
    for path, module in list(changed.named_modules()):
        if isinstance(module, PrunedEmbedding) and module.mode is None:
            rows = module.table.get_parameter("weight").detach()
            plain = nn.Embedding(len(rows), rows.shape[1], padding_idx=_padding(module), _weight=rows.clone())
            maps[path] = module.position.detach().clone()
            changed = replace(changed, Site((path,), module), plain)
    if not maps:
        raise NothingMatchedError("no pruned table (such as OptFS leaves) is in the model, so there is no map to move")
    return changed, maps


def _padding(table: PrunedEmbedding) -> int | None:
    return None if table.padding_idx is None else int(table.position[table.padding_idx])


class RewrittenTask(Task):
    """A click task whose ids were written by the new vocabulary, to measure a model without a map.

    Args:
        base: a task whose inputs are a mapping with the entry `ids`.
        new_ids: new id of each old id, int32 [old rows].
    """

    def __init__(self, base: Task, new_ids: Tensor) -> None:
        self.base, self.new_ids = base, new_ids
        self.name, self.metrics, self.settings = f"{base.name}-rewritten", base.metrics, base.settings
        self.provides = base.provides

    def build(self) -> nn.Module:
        """Return the untrained reference model of the base task, which expects old ids."""
        return self.base.build()

    def batches(self, split: Split, seed: int = 0) -> Iterable[Any]:
        """Yield the batches of the base task with new ids."""
        for inputs, label in self.base.batches(split, seed):
            yield self._mapped(inputs), label

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of the base task."""
        return self.base.loss(model, batch)

    def _mapped(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**inputs, "ids": self.new_ids[inputs["ids"]]}
