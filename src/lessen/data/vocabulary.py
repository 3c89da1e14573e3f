"""Strings become row numbers: counted vocabularies with an out-of-vocabulary id, or hashing."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.readers.values import numerals, one_spelling, two_spellings

MERGE_ROWS = 2_000_000
INDEXED = 100_000
"""Values of which a dictionary is made for look-ups of single texts; of more, polars keeps the only copy."""


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
        if len(self.pending) == 1:
            return  # the values of one piece, or of all pieces so far: distinct already
        self.pending = [pl.concat(self.pending).group_by("value").agg(pl.col("count").sum())]

    def two_spellings(self) -> tuple[str, str, int] | None:
        """Return two texts that spell one number, and how many such numbers there are; None if there are none."""
        if not self.pending:
            return None
        self._merge()
        return two_spellings(self.pending[0]["value"])

    def frequent(self, minimum: int) -> pl.Series:
        """Return the values seen at least `minimum` times, most frequent first, ties in alphabetical order."""
        if not self.pending:
            return pl.Series("value", [], dtype=pl.String)
        self._merge()
        kept = self.pending[0].filter(pl.col("count") >= minimum)
        return kept.sort(["count", "value"], descending=[True, False])["value"]


@dataclass
class Vocabulary:
    """Local ids: 0 for what is not known, then the known values from 1 on. Empty strings may be a value.

    A text that is not known as it is written gets the id of the value that spells the same number, if there is one:
    3.0 that of 3. It does not with `exact`.
    """

    values: pl.Series
    exact: bool = False
    _kind: pl.Enum | None = field(default=None, repr=False)
    _numbers: tuple[Vocabulary, NDArray[np.int32]] | None = field(default=None, repr=False)
    _index: dict[str, int] | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Rows that a table needs for this vocabulary."""
        return len(self.values) + 1

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Return the local id of each string."""
        if self._kind is None:
            self._kind = pl.Enum(self.values)
        codes = values.cast(self._kind, strict=False).to_physical().cast(pl.Int32)
        ids = (codes.fill_null(-1).to_numpy() + 1).astype(np.int32)
        return ids if self.exact or not codes.null_count() else self._by_number(values, ids)

    def find(self, text: str) -> int | None:
        """Return the local id of one text as it is written, None where it is not known."""
        if len(self.values) > INDEXED:
            return int(self.encode(pl.Series([text], dtype=pl.String))[0]) or None
        if self._index is None:
            self._index = {value: at for at, value in enumerate(self.values, 1)}
        return self._index.get(text)

    def find_number(self, key: str) -> int | None:
        """Return the local id of the value that spells the number whose canonical text is `key`, None without one."""
        known, places = self._spelled()
        at = known.find(key)
        return None if at is None else int(places[at - 1])

    def _by_number(self, values: pl.Series, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Fill in ids of texts that spell a known number in another way."""
        unknown = np.flatnonzero(ids == 0)
        rest = values.gather(unknown)
        distinct = rest.unique()
        keys = numerals(distinct)
        if keys.null_count() == len(keys):
            return ids
        known, places = self._spelled()
        spelled = np.r_[np.int32(0), places][known.encode(keys.fill_null(""))]
        ids[unknown] = np.r_[np.int32(0), spelled][Vocabulary(distinct, exact=True).encode(rest)]
        return ids

    def _spelled(self) -> tuple[Vocabulary, NDArray[np.int32]]:
        """Return the numbers that known values spell and their ids; of two spellings, that of the first."""
        if self._numbers is None:
            keys = numerals(self.values)
            table = pl.DataFrame({"key": keys, "id": np.arange(1, len(keys) + 1, dtype=np.int32)})
            table = table.drop_nulls().unique("key", keep="first", maintain_order=True)
            self._numbers = Vocabulary(table["key"], exact=True), table["id"].to_numpy()
        return self._numbers


@dataclass(frozen=True)
class Hashed:
    """Local ids 1 .. buckets by CRC-32 of the UTF-8 bytes: the same on any machine; different values may collide.

    Texts that spell one number are hashed as that number, unless `exact`.
    """

    buckets: int
    exact: bool = False

    @property
    def rows(self) -> int:
        """Rows that a table needs: the buckets, and the row of unknown values that every field has."""
        return self.buckets + 1

    def find(self, text: str) -> int | None:
        """Return the local id of one text as it is written, None where the number that it may spell decides."""
        return 1 + zlib.crc32(text.encode()) % self.buckets if self.exact else None

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Return the local id of each string."""
        distinct = values.unique()
        hashed = distinct if self.exact else one_spelling(distinct)
        ids = [1 + zlib.crc32(value.encode()) % self.buckets for value in hashed]
        return np.array([0, *ids], dtype=np.int32)[Vocabulary(distinct, exact=True).encode(values)]
