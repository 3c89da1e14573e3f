"""Mini-batch aware L2 of DIN (KDD 2018, arXiv 1706.06978, Eq. 4-7): only ids of the batch decay, rare ones harder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lessen.errors import TaskError
from lessen.train.hooks import Hook


class MiniBatchAware(Hook):
    """Adds lambda/2 * sum over the batch's distinct ids j of ||w_j||^2 / n_j for one table.

    n_j is how often id j occurs in the whole training set, not in the batch. Summed over an epoch this is
    lambda/2 * ||W||^2 spread over the batches an id occurs in. The paper's update is plain SGD; under Adam the second
    moment rescales it. The useful size of lambda grows with the data.

    Args:
        table: name of the `nn.Embedding` inside the model, such as "vectors.table".
        occurrences: int64 [table rows], as `Columns.occurrences` counts them.
        strength: lambda.
    """

    parallel = False  # ids are distinct in the whole batch

    def __init__(self, table: str, occurrences: Tensor, strength: float) -> None:
        self.name, self.strength = table, strength
        self.share = 1.0 / occurrences.clamp(min=1).float()
        self._ids: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def start(self, model: nn.Module) -> None:
        """Watch which ids the table is asked for. Raises TaskError if there is no such table."""
        module = dict(model.named_modules()).get(self.name)
        if not isinstance(module, nn.Embedding) or module.num_embeddings != len(self.share):
            raise TaskError(f"the model has no nn.Embedding {self.name!r} of {len(self.share)} rows")
        self._table = module
        self._handle = module.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, module: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        if module.training:
            self._ids = arguments[0] if arguments else keywords["input"]

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002 - the contract's signature
        """Add the term of the batch that was just seen."""
        if self._ids is None:
            return loss
        ids = torch.unique(self._ids)
        if self._table.padding_idx is not None:
            ids = ids[ids != self._table.padding_idx]
        rows = F.embedding(ids, self._table.weight, sparse=self._table.sparse)
        return loss + 0.5 * self.strength * (rows.square().sum(dim=1) * self.share[ids]).sum()

    def finish(self, model: nn.Module) -> None:  # noqa: ARG002 - the contract's signature
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
        self._ids = None
