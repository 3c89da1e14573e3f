"""Columns of text that are numbers: their values, and one spelling for whole numbers and truth values.

Files spell one id in several ways: 3 in a column of integers, 3.0 once a cell of it was empty, 01 where zeros were
kept. Counting them as different values would split them; looking at every cell with a pattern would cost more than
counting does, so that columns are only looked at closely when their length betrays another spelling.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.readers.values import one_spelling

_PROBE = 256
_WORDS = ("true", "false")


def numbers_of(column: pl.Series, length: int) -> tuple[pl.Series, NDArray[np.float64]]:
    """Return a column of text with numbers spelled in one way, and the finite numbers in it.

    Args:
        column: strings; `length` is the bytes of all of them.
    """
    probe = column.drop_nulls().head(_PROBE)
    if not len(probe):
        return column, np.empty(0)
    if probe.str.to_lowercase().is_in(_WORDS).all():
        return _respelled(column, column.is_not_null()), np.empty(0)
    if probe.cast(pl.Float64, strict=False).null_count() > 0.5 * len(probe):
        return column, np.empty(0)
    whole = column.cast(pl.Int64, strict=False)
    values = whole.drop_nulls().to_numpy()
    if len(values) + column.null_count() == len(column):
        if length != _canonical_length(values):
            column = _respelled(column, column.is_not_null())
        return column, values.astype(np.float64)
    numbers = column.cast(pl.Float64, strict=False)
    looks_whole = (numbers == numbers.floor()).fill_null(False)
    if looks_whole.any():
        column = _respelled(column, looks_whole)
    found = numbers.drop_nulls().to_numpy()
    return column, found[np.isfinite(found)]


def _canonical_length(values: NDArray[np.int64]) -> int:
    """Return how many characters these whole numbers take without signs and zeros that they do not need."""
    if not len(values):
        return 0
    total = len(values) + int((values < 0).sum())
    size = np.abs(values)
    largest, bound = int(size.max()), 10
    while bound <= largest and bound < 10**18:
        total += int((size >= bound).sum())
        bound *= 10
    return total + (int((size >= bound).sum()) if bound <= largest else 0)


def _respelled(column: pl.Series, where: pl.Series) -> pl.Series:
    """Return the column with the numbers in the rows `where` in their canonical spelling."""
    distinct = column.filter(where).unique()
    changed = one_spelling(distinct)
    differ = (changed != distinct).fill_null(False)
    if not differ.any():
        return column
    return column.replace(distinct.filter(differ), changed.filter(differ))
