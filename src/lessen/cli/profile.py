"""Where the bytes of a model are, how often its table rows are read, and a forecast of what each method would leave.

Methods that need no training are tried on a copy; of table methods that train, the untrained compact tables are built
and weighed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lessen.errors import LessenError
from lessen.method import Context, Method
from lessen.methods import builtin_methods
from lessen.methods.calibration import count_ids
from lessen.methods.embeddings.retrained import RetrainedTables, Wanted
from lessen.methods.sites import TABLES, blocks, find
from lessen.recipe import Recipe, state_bytes
from lessen.stored.base import StoredModule
from lessen.stored.embedding import TableShape
from lessen.task import Task


@dataclass(frozen=True)
class Part:
    """One module that holds tensors of its own."""

    path: str
    kind: str
    rows: int | None
    width: int | None
    bytes: int
    share: float


@dataclass(frozen=True)
class TableUse:
    """How the train split reads the rows of one field of a table."""

    path: str
    field: str
    rows: int
    rows_read: int
    """Rows that were read at least once."""
    lookups: int
    head_share: float
    """Share of the lookups that go to the most frequent 1 % of the rows (at least one row)."""
    head_rows: int
    """Rows that take 90 % of the lookups."""


@dataclass(frozen=True)
class Forecast:
    """What a method at its default knobs leaves of the model."""

    method: str
    family: str
    bytes: int | None
    share: float | None
    remark: str


@dataclass(frozen=True)
class Profile:
    """Modules, largest first; fields of plain tables, in the table's order; forecasts, smallest first."""

    total_bytes: int
    modules: list[Part]
    tables: list[TableUse]
    forecasts: list[Forecast]


def examine(model: nn.Module, task: Task) -> Profile:
    """Return the profile of `model`, which is not changed."""
    total = state_bytes(model)
    parts = [part for path, module in model.named_modules() if (part := _part(path, module, total))]
    counts = _counts(model, task)
    forecasts = [_forecast(name, cls, model, task, counts, total) for name, cls in builtin_methods().items()]
    forecasts.sort(key=lambda one: (one.bytes is None, one.bytes or 0, one.method))
    uses = [use for path, count in counts.items() for use in _uses(path, model.get_submodule(path), count)]
    return Profile(total, sorted(parts, key=lambda part: -part.bytes), uses, forecasts)


def _counts(model: nn.Module, task: Task) -> dict[str, Tensor]:
    """Return how often the train split reads each row of each plain table, int64 [rows] by path."""
    sites = [site for site in find(model, TABLES, Context()) if site.paths[0]]
    if not sites or "calibration" not in task.provides:
        return {}
    return {site.path: count for site, count in zip(sites, count_ids(model, task, sites), strict=True)}


def _uses(path: str, table: nn.Module, counts: Tensor) -> list[TableUse]:
    found = []
    for block in blocks(TableShape.of(table)):
        own = counts[block.start : block.start + block.rows].sort(descending=True).values
        lookups, head = int(own.sum()), max(1, block.rows // 100)
        if block.name and lookups:
            taken = int((own.cumsum(0) < 0.9 * lookups).sum()) + 1
            share = float(own[:head].sum()) / lookups
            found.append(TableUse(path, block.name, block.rows, int((own > 0).sum()), lookups, share, taken))
    return found


def _part(path: str, module: nn.Module, total: int) -> Part | None:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    count = sum(tensor.numel() * tensor.element_size() for tensor in own)
    if not count:
        return None
    matrix = next((tensor for tensor in own if tensor.dim() == 2), None)
    kind = module.kind if isinstance(module, StoredModule) else type(module).__name__
    rows, width = (int(matrix.shape[0]), int(matrix.shape[1])) if matrix is not None else (None, None)
    return Part(path or "(the model itself)", kind, rows, width, count, count / max(1, total))


def _forecast(
    name: str, cls: type[Method], model: nn.Module, task: Task, counts: dict[str, Tensor], total: int
) -> Forecast:
    card = cls.card
    try:
        if issubclass(cls, RetrainedTables):
            left = _weighed(cls(), model, counts, total)
            return Forecast(name, card.family, left, left / max(1, total), f"retrains: {card.summary}")
        if card.needs & {"training", "gradients", "teacher"}:
            return Forecast(name, card.family, None, None, "retrains: try it with lessen compress")
        small, _ = Recipe([cls()]).apply(model, task)
    except ValidationError:
        return Forecast(name, card.family, None, None, f"needs knobs: see lessen methods {name}")
    except LessenError as error:
        return Forecast(name, card.family, None, None, str(error).partition(";")[0])
    left = state_bytes(small)
    return Forecast(name, card.family, left, left / max(1, total), card.summary)


def _weighed(method: RetrainedTables, model: nn.Module, counts: dict[str, Tensor], total: int) -> int:
    """Return the bytes that a method which trains would leave, from its untrained tables.

    Raises:
        NothingMatchedError: it finds no table.
    """
    context = Context()
    for site in method.sites(model, context):
        shape = TableShape.of(site.module)
        count = counts.get(site.path, torch.ones(shape.rows, dtype=torch.int64))
        after = method.final_bytes(method.replacement(Wanted(site.module, shape, None, count), context))
        total -= max(0, state_bytes(site.module) - after)
    return total
