"""The places of a model's bytes, how often its table rows are read, and a forecast of what each method would leave.

Methods that need no training are tried on a copy; of table methods that train, the untrained compact tables are built
and weighed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from lessen.capabilities import capabilities
from lessen.errors import BudgetError, LessenError, NothingMatchedError, TaskError
from lessen.method import Context, Method
from lessen.methods import builtin_methods
from lessen.methods.calibration import count_ids
from lessen.methods.embeddings._shared.budget import tables_of
from lessen.methods.sites import Site, blocks, state_bytes
from lessen.recipe import Recipe
from lessen.stored.base import StoredModule
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.task import TIMED, Split, Task, Workload
from lessen.usercode import boundary

NOTHING = 1e-9
"""A share that no table can reach, so that a method names the smallest it can."""


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
    """What a method at its default knobs leaves of the model, and how small it can make the tables."""

    method: str
    family: str
    bytes: int | None
    share: float | None
    """Of the model's bytes now."""
    smallest: float | None
    """The smallest `share` of the tables' bytes that the method can reach, where it has that knob."""
    remark: str
    matches: bool = True
    """Whether the method finds anything in this model to act on."""


@dataclass(frozen=True)
class Profile:
    """Modules, largest first; fields of plain tables, in the table's order; forecasts, smallest first."""

    total_bytes: int
    modules: list[Part]
    tables: list[TableUse]
    forecasts: list[Forecast]

    def __str__(self) -> str:
        """Return the tables, what reads their rows, and the forecasts of the methods that act on this model."""
        parts = [
            (p.path, p.kind, p.rows or "", p.width or "", f"{p.bytes:,}", f"{100 * p.share:.1f} %")
            for p in self.modules
        ]
        uses = [
            (u.path, u.field, u.rows, u.rows_read, u.lookups, f"{100 * u.head_share:.0f} %", u.head_rows)
            for u in self.tables
        ]
        known = [
            (f.method, f"{f.bytes:,}", f"{100 * (f.share or 0):.1f} %", _percent(f.smallest), f.remark)
            for f in self.forecasts
            if f.bytes is not None
        ]
        remarks: dict[str, list[str]] = {}
        for one in self.forecasts:
            if one.bytes is None and one.matches:
                remarks.setdefault(one.remark, []).append(one.method)
        unfit = [f.method for f in self.forecasts if not f.matches]
        lines = [*_columns(("module", "kind", ">rows", ">width", ">bytes", ">share"), parts)]
        lines.append(f"total {self.total_bytes:,} bytes")
        if uses:
            heads = ("table", "field", ">rows", ">read", ">lookups", ">to the top 1 %", ">rows of 90 %")
            lines += ["", "rows that the train split reads", *_columns(heads, uses)]
        columns = ("method", ">bytes left", ">of now", ">tables down to", "remark")
        lines += ["", "forecast at default knobs", *_columns(columns, known), ""]
        for remark, methods in remarks.items():
            lines += _listed(f"no forecast, {remark}", methods)
        if unfit:
            lines += _listed("find nothing to act on in this model", unfit)
        return "\n".join(lines)


def _listed(head: str, names: Sequence[str]) -> list[str]:
    return textwrap.wrap(f"{head}: {', '.join(names)}", 110, subsequent_indent="  ", break_on_hyphens=False)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %"


def _columns(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return lines of aligned columns; those whose name starts with `>` are set flush right."""
    cells = [[head.removeprefix(">") for head in heads], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if head.startswith(">") else cell.ljust(width)
            for cell, width, head in zip(row, widths, heads, strict=True)
        ).rstrip()
        for row in cells
    ]


class NoTask(Task):
    """Stands for a task where only a model is given: methods that need data have no forecast."""

    name = "none"
    metrics = {}
    provides = frozenset()

    def build(self) -> nn.Module:
        """Refuse."""
        raise TaskError("no task was given")

    def batches(self, split: Split, seed: int = 0) -> Iterable[Any]:  # noqa: ARG002
        """Return nothing."""
        return ()

    def loss(self, model: nn.Module, batch: Any) -> Tensor:  # noqa: ARG002
        """Refuse."""
        raise TaskError("no task was given")

    def example_batch(self) -> Any:
        """Refuse."""
        raise TaskError("looks at data: give a task")

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:  # noqa: ARG002
        """Return nothing."""
        return {}


def profile(model: nn.Module, task: Task | None = None) -> Profile:
    """Return where the bytes of `model` are and what each method would leave; the model is not changed.

    Args:
        task: gives the batches on which the reads of each table row are counted. Tables and bytes are listed without
            one, but methods that need data have no forecast, and rows count as read evenly.
    """
    judge = task or NoTask()
    total = state_bytes(model)
    with boundary(f"task {judge.name!r} cannot read the train split with {type(model).__name__}"):
        counts = _counts(model, judge)
    parts = [part for path, module in model.named_modules() if (part := _part(path, module, total))]
    forecasts = [_forecast(name, cls, model, judge, counts, total) for name, cls in builtin_methods().items()]
    forecasts.sort(key=lambda one: (one.bytes is None, one.bytes or 0, one.method))
    uses = [use for path, count in counts.items() for use in _uses(path, model.get_submodule(path), count)]
    return Profile(total, sorted(parts, key=lambda part: -part.bytes), uses, forecasts)


def _counts(model: nn.Module, task: Task) -> dict[str, Tensor]:
    """Return how often the train split reads each row of each table, stored ones too, int64 [rows] by path."""
    tables = tables_of(model)
    paths: dict[int, str] = {}
    for path, module in model.named_modules():
        paths.setdefault(id(module), path)
    sites = [Site((paths[id(table)],), table) for table in tables if paths[id(table)]]
    if not sites or "calibration" not in capabilities(task):
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
    if isinstance(module, StoredEmbedding):
        rows, width = module.num_embeddings, module.embedding_dim
    return Part(path or "(the model itself)", kind, rows, width, count, count / max(1, total))


def _forecast(
    name: str, cls: type[Method], model: nn.Module, task: Task, counts: dict[str, Tensor], total: int
) -> Forecast:
    card, remark = cls.card, cls.card.summary
    smallest: float | None = None
    matches = True
    try:
        method = cls()
        found = method.forecast(model, task, Context(known={"id_counts": counts}))
        if found is not None:
            left, remark, smallest = found.bytes, found.remark or remark, found.smallest
        elif isinstance(task, NoTask) and "calibration" in card.needs:
            left, remark = None, "looks at data: give a task"
        elif card.needs & {"training", "gradients", "teacher"}:
            left, remark = None, "retrains: try it with lessen compress"
        else:
            smallest = _smallest(cls, model, task)
            left = state_bytes(Recipe([method]).apply(model, task, form_only=True)[0])
    except ValidationError:
        left, remark = None, f"needs knobs: see lessen methods {name}"
    except LessenError as error:
        left, remark, matches = None, str(error).partition(";")[0], not isinstance(error, NothingMatchedError)
    share = None if left is None else left / max(1, total)
    return Forecast(name, card.family, left, share, smallest, remark, matches)


def _smallest(cls: type[Method], model: nn.Module, task: Task) -> float | None:
    """Return the smallest share of the tables' bytes that a method without training can reach."""
    if "share" not in cls.model_fields or cls.card.family != "embeddings":
        return None
    try:
        Recipe([cls(share=NOTHING)]).apply(model, task)  # type: ignore[call-arg]
    except BudgetError as error:
        return error.nearest
    except TaskError:
        pass  # it looks at data, and there are none
    return None
