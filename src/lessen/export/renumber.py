"""Deploying a pruned table: its map of ids leaves the model, and whoever writes the ids writes the small ones.

before  value --vocabulary--> id --map of the pruned table, 4 bytes an id--> row

`renumber`       value --smaller vocabulary--> row      a data folder is written again; dropped values are unknown ones
`take_maps_out`  id --the map, in your preprocessing--> row      any model, each table with a map of its own

The first makes one numbering for all tables, field by field, since a vocabulary has one; the second keeps the order of
rows that each table has, so that it knows no data and changes no bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lessen.data.encoder import Encoded, Encoder
from lessen.data.folder import Dataset, SplitWriter, write_description
from lessen.data.vocabulary import Hashed, Vocabulary
from lessen.errors import ConfigError, NothingMatchedError, TaskError
from lessen.files import atomic_folder
from lessen.methods.sites import Site, replace
from lessen.stored.fields import FieldEmbedding
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.fallback_embedding import FallbackEmbedding
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding
from lessen.task import Split, Task
from lessen.tasks.ctr.logs import LogClicks, LogOptions

BLOCK_ROWS = 1 << 18

AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Renumbered:
    """A model without id maps, its task, the vocabulary sizes and what changed in its test scores."""

    model: nn.Module
    task: LogClicks
    rows_before: int
    rows_after: int
    largest_difference: float


def renumber(model: nn.Module, task: LogClicks, out: Path) -> Renumbered:
    """Write the data set of `task` with the values that `model` keeps to the new folder `out`; return the new model.

    Every table over the data set's ids must be pruned, plainly or with quantised rows; values kept by any table stay.
    Test scores of the new model on the new data set are compared with those of the old one.

    Raises:
        ConfigError: a table is not pruned, or a field cannot lose values.
        OutputError: `out` exists or cannot be written; nothing half-written is left.
    """
    data = task.dataset
    tables = _tables(model, data.layout.rows)
    kept = torch.zeros(data.layout.rows, dtype=torch.bool)
    kept[0] = True
    for table in tables.values():
        kept |= _own(table)
    stands, rows = _plan(data, kept, list(tables.values()))
    encoder = Encoder(data.schema, _smaller(data.encoder, kept), data.encoder.numbers, data.encoder.version)
    with atomic_folder(out) as folder:
        counts = {split: _rewrite(data, split, encoder, rows, folder / split) for split in data.rows}
        write_description(folder, encoder, counts, f"{data.fingerprint}-renumbered")
    renamed = LogClicks(LogOptions(**{**task.options.model_dump(), "data": str(out)}))
    made = renamed.build().eval()
    _copy_state(made, model, tables)
    for path, table in tables.items():
        parent, _, name = path.rpartition(".")
        setattr(made.get_submodule(parent), name, _without_map(table, stands, renamed))
    before, after = task.predictions(model)[0], renamed.predictions(made)[0]
    difference = float(np.abs(before - after).max())
    return Renumbered(made, renamed, data.layout.rows, renamed.layout.rows, difference)


def _tables(model: nn.Module, rows: int) -> dict[str, PrunedEmbedding | TieredEmbedding]:
    """Return the pruned tables over all ids by path. Raises ConfigError for a table of another form."""
    found: dict[str, PrunedEmbedding | TieredEmbedding] = {}
    for path, module in model.named_modules():
        if any(path.startswith(f"{outer}.") for outer in found) or not isinstance(
            module, (nn.Embedding, StoredEmbedding)
        ):
            continue
        if module.num_embeddings != rows:
            continue
        pruned = isinstance(module, PrunedEmbedding) and isinstance(module.table, (nn.Embedding, QuantizedEmbedding))
        tiers = isinstance(module, TieredEmbedding) and isinstance(module.cold, FallbackEmbedding)
        if not pruned and not (tiers and isinstance(module.hot, nn.Embedding)):
            raise ConfigError(
                f"{path} is a {type(module).__name__} with something for every id; only tables of emb-prune-rows "
                "(rows in float32, or quantised after an index of kind 'map') can give up values"
            )
        found[path] = module  # type: ignore[assignment]
    if not found:
        raise ConfigError("the model has no pruned table over the ids of this data set; apply emb-prune-rows first")
    return found


def _own(table: PrunedEmbedding | TieredEmbedding) -> Tensor:
    """Return which ids read a row that is not their field's fallback, bool [rows]."""
    if isinstance(table, TieredEmbedding):
        own = torch.zeros(table.num_embeddings, dtype=torch.bool)
        own[table.hot_ids.long()] = True
        return own
    return table.position < table.kept - len(FallbackEmbedding(TableShape.of(table)).blocks)


def _plan(data: Dataset, kept: Tensor, tables: list[Any]) -> tuple[Tensor, NDArray[np.int32]]:
    """Return for each new row an old id that reads the same, int64 [new rows], and the new row of each old id.

    The first row of a field serves unknown values; where values are dropped it becomes the fallback.

    Raises:
        ConfigError: unknown values of a field read another row than its dropped values.
    """
    stands, rows = [torch.zeros(1, dtype=torch.int64)], np.zeros(len(kept), dtype=np.int32)
    count = 1
    for segment in data.layout.segments:
        ids = torch.arange(segment.start, segment.start + segment.rows)
        stays = kept[ids].clone()
        stays[0] = True
        dropped = ids[~stays]
        unknown = dropped[:1] if len(dropped) else ids[:1]
        if len(dropped):
            if isinstance(data.encoder.vocabularies[segment.name], Hashed):
                raise ConfigError(f"field {segment.name!r} is hashed: its values cannot leave a vocabulary")
            if any(not torch.equal(table.lookup(unknown), table.lookup(ids[:1])) for table in tables):
                raise ConfigError(
                    f"field {segment.name!r}: unknown and dropped values read different rows; prune with fallback 'oov'"
                )
        stands += [unknown, ids[1:][stays[1:]]]
        places = count + torch.cumsum(stays.int(), dim=0) - 1
        rows[segment.start : segment.start + segment.rows] = torch.where(stays, places, count).numpy()
        count += int(stays.sum())
    return torch.cat(stands), rows


def _smaller(encoder: Encoder, kept: Tensor) -> dict[str, Vocabulary | Hashed]:
    """Return the vocabularies with the values whose ids are kept, in their order."""
    made: dict[str, Vocabulary | Hashed] = {}
    for segment in encoder.layout.segments:
        known = encoder.vocabularies[segment.name]
        if isinstance(known, Vocabulary):
            stays = kept[segment.start + 1 : segment.start + segment.rows].numpy()
            known = Vocabulary(known.values.filter(stays.tolist()), known.exact)
        made[segment.name] = known
    return made


def _rewrite(data: Dataset, split: str, encoder: Encoder, rows: NDArray[np.int32], folder: Path) -> int:
    """Write a split with new ids and return its rows."""
    writer = SplitWriter(folder, encoder)
    for start in range(0, data.rows[split], BLOCK_ROWS):
        part = {name: np.array(data.array(split, name)[start : start + BLOCK_ROWS]) for name in writer.arrays}
        numeric = part.pop("numeric", np.zeros((len(part["ids"]), 0), dtype=np.float32))
        ids, label = part.pop("ids"), part.pop("label")
        writer.append(Encoded(rows[ids], numeric, label, part), np.ones(len(ids), dtype=np.bool_))
    return writer.close()


def _without_map(table: PrunedEmbedding | TieredEmbedding, stands: Tensor, task: LogClicks) -> nn.Module:
    """Return the table whose row r is what old id `stands[r]` reads."""
    if isinstance(table, PrunedEmbedding) and isinstance(table.table, QuantizedEmbedding):
        segments = [list(segment) for segment in task.layout.segments]
        made = QuantizedEmbedding(TableShape(len(stands), table.embedding_dim, segments=segments), table.table.bits)
        made.packed.copy_(table.table.packed[table.position[stands].long()])
        return made
    plain = FieldEmbedding(task.layout.segments, table.embedding_dim)
    with torch.no_grad():
        plain.weight.copy_(table.lookup(stands))
    return plain


def _copy_state(made: nn.Module, model: nn.Module, tables: dict[str, Any]) -> None:
    """Copy everything but the tables, compressed modules included. Raises TaskError where shapes depend on the ids."""
    for name, module in copy.deepcopy(model).named_children():
        inside = [path for path in tables if path == name or path.startswith(f"{name}.")]
        if not inside:
            setattr(made, name, module)
            continue
        state = {k: v for k, v in module.state_dict(prefix=f"{name}.").items() if not k.startswith(tuple(inside))}
        lacking = made.load_state_dict(state, strict=False).unexpected_keys
        if lacking:
            raise TaskError(f"{name} holds compressed modules beside its tables; renumber before compressing these")
    own = dict(model.named_parameters(recurse=False)) | dict(model.named_buffers(recurse=False))
    made.load_state_dict({k: v for k, v in own.items() if k in made.state_dict()}, strict=False)


# -- any model, in memory ------------------------------------------------------------------------------------------
def take_maps_out(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of `model` whose pruned tables are plain embeddings, and by path the new id of each old id.

    The copy gives the same outputs bit for bit with ids mapped by `new[old]`. Dropped ids share the last row of the
    table; padding keeps its id. Each map is int32 [old rows] and belongs into preprocessing.

    Raises:
        NothingMatchedError: the model holds no pruned table.
    """
    changed = copy.deepcopy(model)
    maps: dict[str, Tensor] = {}
    for path, module in list(changed.named_modules()):
        if isinstance(module, PrunedEmbedding) and module.mode is None:
            rows = module.table.get_parameter("weight").detach()
            padding = None if module.padding_idx is None else int(module.position[module.padding_idx])
            plain = nn.Embedding(len(rows), rows.shape[1], padding_idx=padding, _weight=rows.clone())
            maps[path] = module.position.detach().clone()
            changed = replace(changed, Site((path,), module), plain)
    if not maps:
        raise NothingMatchedError("no pruned table (such as OptFS leaves) is in the model, so there is no map to move")
    return changed, maps


def with_new_ids(task: AnyTask, new_ids: Tensor) -> AnyTask:
    """Return `task` as if its ids had been written by the map, to measure a model without one.

    Args:
        task: its inputs are a mapping with the entry `ids`.
        new_ids: new id of each old id, int32 [old rows].
    """

    def batches(split: Split, seed: int = 0) -> Iterator[Any]:
        for inputs, label in task.batches(split, seed):
            yield {**inputs, "ids": new_ids[inputs["ids"]]}, label

    return task.view(name=f"{task.name}-renumbered", batches=batches)
