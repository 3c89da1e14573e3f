"""A key for each row, and a uniform sample of rows that neither order nor chunking can change."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
_EVERYTHING = np.uint64(0xFFFFFFFFFFFFFFFF)


def mix(values: Keys) -> Keys:
    """Return SplitMix64 of each value: a bijection of 64-bit numbers that looks random."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def row_keys(file: int, start: int, rows: int, seed: int) -> Keys:
    """Return a key for rows `start` to `start + rows` of file number `file`."""
    with np.errstate(over="ignore"):
        place = np.arange(start, start + rows, dtype=np.uint64) + np.uint64(file << 44)
        return mix(place ^ mix(np.full(1, seed, dtype=np.uint64)))


@dataclass
class RowSample:
    """The `limit` rows of smallest key, in key order: a uniform sample in random order."""

    limit: int
    bound: np.uint64 = _EVERYTHING
    pieces: list[pl.DataFrame] = field(default_factory=list)
    held: int = 0
    settled: bool = False
    """Whether one piece holds the sample in key order: sorting a hundred columns of text costs as much as reading."""

    def add(self, frame: pl.DataFrame, keys: Keys, classes: NDArray[np.uint8]) -> None:
        """Offer rows; `frame` holds the columns, `keys` and `classes` one value a row."""
        keep = keys < self.bound
        if not keep.any():
            return
        piece = frame if keep.all() else frame.filter(pl.Series(keep))
        self.pieces.append(piece.with_columns(pl.Series(_KEY, keys[keep]), pl.Series(_CLASS, classes[keep])))
        self.held += len(piece)
        self.settled = False
        if self.held > 2 * self.limit:
            self._shrink()

    def merge(self, other: RowSample) -> None:
        """Take in the rows of `other`."""
        self.pieces += other.pieces
        self.held += other.held
        self.bound = min(self.bound, other.bound)
        self.settled = False
        self._shrink()

    def _shrink(self) -> None:
        if self.settled:
            return
        joined = pl.concat(self.pieces, how="diagonal").sort(_KEY).head(self.limit)
        self.pieces, self.held, self.settled = [joined], len(joined), True
        if len(joined) == self.limit:
            self.bound = np.uint64(joined[_KEY][-1])

    def recode(self, mapping: NDArray[np.uint8]) -> None:
        """Replace class codes: `mapping[old] = new`, 256 entries."""
        self.pieces = [p.with_columns(pl.Series(_CLASS, mapping[p[_CLASS].to_numpy()])) for p in self.pieces]

    def rows(self) -> tuple[pl.DataFrame, Keys, NDArray[np.uint8]]:
        """Return the sampled rows in key order, their keys and their class codes."""
        self._shrink()
        frame = self.pieces[0]
        return frame.drop(_KEY, _CLASS), frame[_KEY].to_numpy(), frame[_CLASS].to_numpy()


_KEY, _CLASS = "\x00key", "\x00class"
