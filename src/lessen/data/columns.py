"""Columnar examples: one int32 matrix of global ids, optional numbers, a binary label; batches are gathers of it.

ids [rows, columns] int32        numeric [rows, n] float32        label [rows] float32
| user | item | hour | genres . . . . | history . . . |
  one column a categorical field, `width` columns (0 = padding) a multi-valued or sequence field
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lessen.errors import DataError
from lessen.stored.fields import Segment

Kind = Literal["categorical", "multi", "sequence"]
Batch = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class IdField:
    """A field of ids: `width` columns from `start`, looked up in the rows of the segment named `segment`."""

    name: str
    kind: Kind
    start: int
    width: int
    segment: str


@dataclass(frozen=True)
class Layout:
    """Which columns belong to which field, which table rows to which vocabulary, and the numeric names.

    Raises:
        DataError: the fields do not tile the columns from 0 on in their order, or name a segment that is not there.
    """

    fields: tuple[IdField, ...]
    segments: tuple[Segment, ...]
    numeric: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected, known = 0, {segment.name for segment in self.segments}
        for field in self.fields:
            if field.start != expected or field.width < 1:
                raise DataError(f"field {field.name!r} starts at column {field.start}, expected {expected}")
            if field.segment not in known:
                raise DataError(f"field {field.name!r} looks up rows of {field.segment!r}, which no segment is called")
            expected += field.width

    @property
    def rows(self) -> int:
        """Rows of the flat table, padding row 0 included."""
        return max(segment.start + segment.rows for segment in self.segments)

    @property
    def width(self) -> int:
        """Columns of the id matrix."""
        return sum(field.width for field in self.fields)

    @property
    def single(self) -> tuple[IdField, ...]:
        """The fields with one id an example."""
        return tuple(field for field in self.fields if field.kind == "categorical")

    @property
    def pooled(self) -> tuple[IdField, ...]:
        """The fields with several ids an example."""
        return tuple(field for field in self.fields if field.kind != "categorical")

    def segment(self, name: str) -> Segment:
        """Return the table rows of the field called `name`. Raises DataError."""
        wanted = self.field(name).segment
        return next(segment for segment in self.segments if segment.name == wanted)

    def field(self, name: str) -> IdField:
        """Return the field called `name`. Raises DataError."""
        for field in self.fields:
            if field.name == name:
                return field
        raise DataError(f"no field is called {name!r}; the fields are {', '.join(f.name for f in self.fields)}")


@dataclass(frozen=True)
class Columns:
    """Examples of one split, checked once when built.

    Raises:
        DataError: lengths differ, ids are negative or beyond the table, numbers are not finite, labels not 0 or 1.
    """

    ids: Tensor
    label: Tensor
    layout: Layout
    numeric: Tensor | None = None

    def __post_init__(self) -> None:
        _check_ids(self.ids, self.layout)
        if self.label.shape != self.ids.shape[:1]:
            raise DataError(f"{len(self.ids)} rows of ids but {tuple(self.label.shape)} labels")
        _check_labels(self.label)
        expected = (len(self.ids), len(self.layout.numeric)) if self.layout.numeric else None
        found = None if self.numeric is None else tuple(self.numeric.shape)
        if found != expected:
            raise DataError(f"numeric columns have shape {found}, the layout asks for {expected}")
        if self.numeric is not None:
            _check_numeric(self.numeric, self.layout.numeric)

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Batch]:
        """Yield `({"ids": ..., "numeric": ...}, label)`: slices in file order, or gathers in `order` [rows] int64."""
        for start, stop in _bounds(len(self), size, drop_single=order is not None):
            pick = slice(start, stop) if order is None else order[start:stop]
            inputs = {"ids": self.ids[pick]}
            if self.numeric is not None:
                inputs["numeric"] = self.numeric[pick]
            yield inputs, self.label[pick]

    def occurrences(self) -> Tensor:
        """Return how often each table row is named, over rows and positions: int64 [table rows], padding counted 0."""
        counts = torch.bincount(self.ids.flatten(), minlength=self.layout.rows)
        counts[0] = 0
        return counts

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Columns:
        """Return the rows picked by a mask or by numbers."""
        pick = torch.from_numpy(np.flatnonzero(rows) if rows.dtype == np.bool_ else rows)
        numeric = None if self.numeric is None else self.numeric[pick]
        return Columns(self.ids[pick], self.label[pick], self.layout, numeric)


def _bounds(rows: int, size: int, drop_single: bool) -> Iterator[tuple[int, int]]:
    """Cut `rows` into batches; when training, a last batch of one row is left out: BatchNorm cannot use it."""
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        if not (drop_single and stop - start == 1 and rows > 1):
            yield start, stop


def _check_ids(ids: Tensor, layout: Layout) -> None:
    if ids.dtype not in (torch.int32, torch.int64) or ids.ndim != 2 or ids.shape[1] != layout.width:
        raise DataError(f"ids must be int32 [rows, {layout.width}], found {ids.dtype} {tuple(ids.shape)}")
    if not len(ids):
        return
    for field in layout.fields:
        part = ids[:, field.start : field.start + field.width]
        low, high = int(part.min()), int(part.max())
        if low < 0:
            raise DataError(f"field {field.name!r} holds the negative id {low}; ids count from 0, which is padding")
        if high >= layout.rows:
            raise DataError(f"field {field.name!r} holds the id {high}, the table has {layout.rows} rows")


def _check_labels(label: Tensor) -> None:
    bad = label[(label != 0) & (label != 1)]
    if len(bad):
        raise DataError(f"the label holds {float(bad[0])}; labels must be 0 or 1 ({len(bad)} rows are not)")


def _check_numeric(numeric: Tensor, names: tuple[str, ...]) -> None:
    broken = ~torch.isfinite(numeric)
    if bool(broken.any()):
        row, column = broken.nonzero()[0].tolist()
        raise DataError(f"numeric field {names[column]!r} holds NaN or infinity, first in row {row}; fill or drop it")
