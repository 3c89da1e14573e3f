"""The label as class codes: text values in order of appearance, or a number cut at given edges."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.readers.values import one_spelling
from lessen.errors import DataError, nearest
from lessen.selection.ranking.tally import MAX_CLASSES, NO_CLASS

NO_LABEL = ("nan", "na", "n/a", "<na>", "null", "nat", "\\n")
"""Words, in small letters, that say that a row has no label."""


@dataclass
class Label:
    """Codes the label of each chunk. `name` None means that there is none: quality and redundancy only."""

    name: str | None
    missing: tuple[str, ...]
    edges: tuple[float, ...] | None = None
    """Inner edges for a numeric label; None takes each distinct value as a class."""
    names: list[str] = field(default_factory=list)

    def codes(self, frame: pl.DataFrame) -> NDArray[np.uint8]:
        """Return one code a row, `NO_CLASS` where the label is missing.

        Raises:
            DataError: no such column, not a number although edges are given, or over 250 distinct values.
        """
        if self.name is None:
            return np.full(frame.height, NO_CLASS, dtype=np.uint8)
        if self.name not in frame.columns:
            raise DataError(f"no column is called {self.name!r} (the label); {nearest(self.name, frame.columns)}")
        column = frame[self.name]
        return self._numbers(column) if self.edges is not None else self._texts(column)

    def _texts(self, text: pl.Series) -> NDArray[np.uint8]:
        distinct = text.drop_nulls().unique()
        distinct = distinct.filter(~distinct.is_in(list(self.missing)) & ~distinct.str.to_lowercase().is_in(NO_LABEL))
        spelled = one_spelling(distinct)
        known = dict(zip(self.names, range(len(self.names)), strict=True))
        for value in sorted(set(spelled.to_list()) - set(known)):
            known[value] = len(self.names)
            self.names.append(value)
            if len(self.names) > MAX_CLASSES:
                raise DataError(
                    f"the label {self.name!r} has over {MAX_CLASSES} distinct values; if it is a number cut it into "
                    "classes with --label-bins 10, else choose another label"
                )
        if not len(distinct):
            return np.full(len(text), NO_CLASS, dtype=np.uint8)
        codes = text.replace_strict(
            distinct,
            pl.Series([known[value] for value in spelled], dtype=pl.UInt8),
            default=NO_CLASS,
            return_dtype=pl.UInt8,
        )
        return np.asarray(codes.fill_null(NO_CLASS).to_numpy())

    def _numbers(self, column: pl.Series) -> NDArray[np.uint8]:
        edges = np.asarray(self.edges)
        values = column.cast(pl.Float64, strict=False).to_numpy()
        self.names = bin_names(edges)
        codes = np.searchsorted(edges, np.nan_to_num(values), side="right").astype(np.uint8)
        codes[np.isnan(values)] = NO_CLASS
        return np.asarray(codes, dtype=np.uint8)


def edges_of(values: NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """Return inner edges that cut `values` into about `bins` classes of equal size.

    A value that alone fills a class, such as a spike of zeros, becomes a class of its own, between itself and the next
    larger number; what is left is cut by its quantiles.
    """
    distinct, counts = np.unique(values, return_counts=True)
    spikes = distinct[counts >= len(values) / bins]
    rest = values[~np.isin(values, spikes)]
    edges = [edge for spike in spikes for edge in (spike, np.nextafter(spike, np.inf))]
    parts = max(bins - len(spikes), 2)
    if len(rest):
        edges += np.quantile(rest, np.arange(1, parts) / parts).tolist()
    found = np.unique(edges)
    # classes that no value falls into are none
    used = np.unique(np.searchsorted(found, distinct, side="right"))
    return tuple(found[used[1:] - 1][: MAX_CLASSES - 1].tolist())


def bin_names(edges: NDArray[np.float64]) -> list[str]:
    """Return what the classes between edges are called, so that sorting by name is sorting by size."""
    digits = len(str(len(edges)))
    names = []
    for number, (low, high) in enumerate(itertools.pairwise([None, *edges.tolist(), None])):
        if low is not None and high is not None and high == np.nextafter(low, np.inf):
            shown = f"{low:g}"
        else:
            left = "" if low is None else _bound(low, "from", "above")
            right = "" if high is None else _bound(high, "below", "up to")
            shown = " ".join(part for part in (left, right) if part) or "all"
        names.append(f"bin {number:0{digits}d}: {shown}")
    return names


def _bound(edge: float, at: str, behind: str) -> str:
    """Return an edge in words; one that stands right behind a shorter number is named after that one."""
    before = float(np.nextafter(edge, -np.inf))
    return f"{behind} {before:g}" if len(repr(before)) < len(repr(edge)) else f"{at} {edge:.4g}"
