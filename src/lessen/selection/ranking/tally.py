"""Exact counts of (value, class) for as many values as fit, kept so that order of rows and of merging cannot matter.

A value is its 56-bit hash; its class sits in the low byte, so one sort of 64-bit keys counts everything:

    key = | hash, 56 bits | class, 8 bits |

The `limit` values of smallest hash stay, with exact counts, when a column has more than `limit`: a random
part of the values, chosen by nothing but their hash. The largest hash kept then estimates how many there are (k
minimum values), and scores are sums over values, so the part estimates them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lessen.selection.ranking.information import Contingency, adjacent_counts

Keys = NDArray[np.uint64]
NO_CLASS = 255
MAX_CLASSES = 250
_HASH = np.uint64(0xFFFFFFFFFFFFFF00)
_EVERYTHING = 1 << 64
HEAVY = 32
"""Rows of a sample that a value must have to be counted there and not by a part of the values."""


@dataclass
class Tally:
    """Counts of one column. `limit` is the number of distinct values held."""

    limit: int
    keys: Keys = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    bound: int = _EVERYTHING
    """Values whose hash is at or above this are not held."""

    def add(self, hashes: Keys, classes: NDArray[np.uint8]) -> None:
        """Count rows given their 64-bit value hashes and class codes (`NO_CLASS` = no label)."""
        keys = (hashes & _HASH) | classes
        if self.bound < _EVERYTHING:
            keys = keys[keys < np.uint64(self.bound)]
        keys.sort()
        counts = adjacent_counts(keys)
        if len(counts):
            self._insert(keys[np.cumsum(counts) - 1], counts)

    def merge(self, other: Tally) -> None:
        """Add the counts of `other`; the result is the same in any order."""
        self.bound = min(self.bound, other.bound)
        self._cut()
        keep = slice(None) if self.bound == _EVERYTHING else other.keys < np.uint64(self.bound)
        self._insert(other.keys[keep], other.counts[keep])

    def recode(self, mapping: NDArray[np.uint8]) -> None:
        """Replace class codes: `mapping[old] = new`, 256 entries."""
        keys = (self.keys & _HASH) | mapping[(self.keys & ~_HASH).astype(np.int64)]
        order = np.argsort(keys, kind="stable")
        self.keys, self.counts = keys[order], self.counts[order]

    def _insert(self, keys: Keys, counts: NDArray[np.int64]) -> None:
        at = np.searchsorted(self.keys, keys)
        known = np.zeros(len(keys), dtype=bool)
        inside = at < len(self.keys)
        known[inside] = self.keys[at[inside]] == keys[inside]
        self.counts[at[known]] += counts[known]
        if not known.all():
            self.keys = np.insert(self.keys, at[~known], keys[~known])
            self.counts = np.insert(self.counts, at[~known], counts[~known])
            self._shrink()

    def _shrink(self) -> None:
        if len(self.keys) <= self.limit:
            return
        starts = self._starts()
        if len(starts) > self.limit:
            self.bound = int(self.keys[starts[self.limit]] & _HASH)
            self._cut()

    def _cut(self) -> None:
        if self.bound < _EVERYTHING:
            end = int(np.searchsorted(self.keys, np.uint64(self.bound)))
            self.keys, self.counts = self.keys[:end].copy(), self.counts[:end].copy()

    def _starts(self) -> NDArray[np.int64]:
        values = self.keys & _HASH
        return np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.empty(0, dtype=np.int64)

    @property
    def exact(self) -> bool:
        """Whether every value is held."""
        return self.bound == _EVERYTHING

    @property
    def share(self) -> float:
        """Share of the values that are held."""
        return 1.0 if self.exact else self.bound / _EVERYTHING

    @property
    def cardinality(self) -> float:
        """Number of distinct values; an estimate when not `exact`."""
        return len(self._starts()) / self.share

    @property
    def cardinality_error(self) -> float:
        """Relative standard error of `cardinality`."""
        return 0.0 if self.exact else 1.0 / float(np.sqrt(max(len(self._starts()) - 1, 1)))

    def value_counts(self) -> NDArray[np.int64]:
        """Return the rows of each held value, labelled or not."""
        starts = self._starts()
        return np.add.reduceat(self.counts, starts) if len(starts) else np.empty(0, dtype=np.int64)

    def contingency(self, classes: NDArray[np.int64]) -> Contingency:
        """Return the counts of labelled rows, given the label's counts over the whole data."""
        return self._table(classes)[0]

    def pooled(self, bounds: Sequence[int], classes: NDArray[np.int64]) -> Iterator[tuple[int, Contingency]]:
        """Yield the same with all values of at most so many labelled rows taken as one, where that changes anything.

        Near-unique values say nothing one by one, but that a row has one of them may say a lot.
        """
        table, keys = self._table(classes)
        sizes, before = np.diff(np.r_[table.starts, len(table.cells)]), 1
        for most in bounds:
            rare = table.values <= most
            if int(rare.sum()) <= before:
                continue
            before = int(rare.sum())
            inside = np.repeat(rare, sizes)
            rest = np.bincount((keys[inside] & ~_HASH).astype(np.int64), weights=table.cells[inside]).astype(np.int64)
            rest = rest[rest > 0]
            values, cells = np.r_[table.values[~rare], rest.sum()], np.r_[table.cells[~inside], rest]
            kept = np.r_[sizes[~rare], len(rest)]
            yield most, Contingency(values, cells, classes, np.cumsum(kept) - kept)

    def with_heavy(self, sample: Tally, rows: int, classes: NDArray[np.int64]) -> Contingency:
        """Return the counts of a part of the values, and of every value that fills much of an even sample of rows.

        A part chosen by hash holds few of the heavy values, in which most rows may be. Their rows in the sample, each
        standing for `rows` over the sample's, take their place; the light values of the part stand for all light ones.
        """
        table, keys = self._table(classes)
        drawn, drawn_keys = sample._table(classes)
        scale = rows / max(int(drawn.values.sum()), 1)
        heavy = drawn.values >= HEAVY
        found, names = drawn_keys[drawn.starts] & _HASH, keys[table.starts] & _HASH
        light = ~np.isin(names, found[heavy])
        left = rows - float(drawn.values[heavy].sum()) * scale
        share = max(left, 0.0) / max(int(table.values[light].sum()), 1)
        parts = [(drawn, heavy, scale), (table, light, share)]
        sizes = [np.diff(np.r_[t.starts, len(t.cells)]) for t, _, _ in parts]
        cells = [t.cells[np.repeat(keep, size)] for (t, keep, _), size in zip(parts, sizes, strict=True)]
        kept = np.concatenate([size[keep] for (_, keep, _), size in zip(parts, sizes, strict=True)])
        return Contingency(
            np.concatenate([t.values[keep] for t, keep, _ in parts]),
            np.concatenate(cells),
            classes,
            np.cumsum(kept) - kept,
            np.concatenate([np.full(int(keep.sum()), weight) for _, keep, weight in parts]),
        )

    def _table(self, classes: NDArray[np.int64]) -> tuple[Contingency, Keys]:
        """Return the counts of labelled rows and the key of each cell."""
        labelled = (self.keys & ~_HASH) != np.uint64(NO_CLASS)
        keys, counts = self.keys[labelled], self.counts[labelled]
        values = keys & _HASH
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(keys) else np.empty(0, dtype=np.int64)
        rows = np.add.reduceat(counts, starts) if len(starts) else np.empty(0, dtype=np.int64)
        return Contingency(values=rows, cells=counts, classes=classes, starts=starts), keys
