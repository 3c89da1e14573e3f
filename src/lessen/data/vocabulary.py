"""From strings to row numbers: counted vocabularies with an out-of-vocabulary id, or hashing."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

MERGE_ROWS = 2_000_000


class Counter:
    """Counts distinct strings over many pieces in bounded time; empty strings count only for single-id fields."""

    def __init__(self) -> None:
        self.pending: list[pl.DataFrame] = []

    def add(self, values: pl.Series) -> None:
        """Count the values of one piece."""
        self.pending.append(values.alias("value").value_counts(name="count").cast({"count": pl.UInt64}))
        if sum(map(len, self.pending)) > MERGE_ROWS:
            self._merge()

    def _merge(self) -> None:
        self.pending = [pl.concat(self.pending).group_by("value").agg(pl.col("count").sum())]

    def frequent(self, minimum: int) -> pl.Series:
        """Return the values seen at least `minimum` times, most frequent first, ties in alphabetical order."""
        if not self.pending:
            return pl.Series("value", [], dtype=pl.String)
        self._merge()
        kept = self.pending[0].filter(pl.col("count") >= minimum)
        return kept.sort(["count", "value"], descending=[True, False])["value"]


@dataclass
class Vocabulary:
    """Local ids: 0 for what is not known, then the known values from 1 on. Empty strings may be a value."""

    values: pl.Series
    _kind: pl.Enum | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Rows that a table needs for this vocabulary."""
        return len(self.values) + 1

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Return the local id of each string."""
        if self._kind is None:
            self._kind = pl.Enum(self.values)
        codes = values.cast(self._kind, strict=False).to_physical().cast(pl.Int32)
        return (codes.fill_null(-1).to_numpy() + 1).astype(np.int32)


@dataclass(frozen=True)
class Hashed:
    """Local ids 1 .. buckets by CRC-32 of the UTF-8 bytes: the same on any machine; different values may collide."""

    buckets: int

    @property
    def rows(self) -> int:
        """Rows that a table needs: the buckets, and the row of unknown values that every field has."""
        return self.buckets + 1

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Return the local id of each string."""
        distinct = values.unique()
        ids = [1 + zlib.crc32(value.encode()) % self.buckets for value in distinct]
        table = Vocabulary(distinct)
        return np.array([0, *ids], dtype=np.int32)[table.encode(values)]
