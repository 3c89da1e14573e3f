"""Mutual information of a column with the label, and what of it chance alone would give.

All in nats. With c_x rows of value x, n rows, h(x) the label's entropy inside x:

    plain      MI = H(Y) - sum_x (c_x / n) h(x)
    corrected  sum_x (c_x / n) (b(c_x) - h(x))      b(c) = entropy expected of c rows drawn at random without return
    shifted    the same with b(x) measured on the rows shifted by c_x (OutRank's form, one draw of the same chance)

The expected form needs only counts, so it cannot depend on the order of rows. It equals MI - E[MI] of the
permutation model, the numerator of adjusted mutual information.
Source: OutRank, arXiv 2309.01552 (shifted form); Vinh et al. 2010 (permutation model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CELLS = 1 << 20
"""Support points worked on at once."""
_DIRECT_VALUES = 512
"""Up to this many values the chance distribution is drawn directly; beyond, values are near independent."""
DRAWS = 99
"""Random relabellings behind a p-value: the smallest one that can be stated is 1 / (DRAWS + 1)."""


def xlogx(counts: NDArray[Any]) -> Floats:
    """Return c log c of non-negative counts, 0 at 0."""
    values = np.asarray(counts, dtype=np.float64)
    return values * np.log(np.maximum(values, 1.0))


def entropy(counts: NDArray[Any]) -> float:
    """Return the entropy of a histogram."""
    total = float(np.sum(counts))
    return float(np.log(total) - xlogx(counts).sum() / total) if total > 0 else 0.0


@dataclass(frozen=True)
class Contingency:
    """Counts of one column against the label: the non-empty cells, and the rows of each value.

    `classes` are the label's counts over all rows; `values` may be a random part of the values (see `Tally`).
    """

    values: Ints
    """Rows of each value, shape [values]."""
    cells: Ints
    """Rows of each non-empty (value, class) cell."""
    classes: Ints
    """Rows of each class, shape [classes]."""
    starts: Ints
    """Where the cells of each value begin, shape [values]."""
    weights: Floats | None = None
    """How many rows of the data each counted row of a value stands for; None: one."""

    @property
    def weight(self) -> Floats:
        """Return the weight of each value."""
        return np.ones(len(self.values)) if self.weights is None else self.weights


@dataclass(frozen=True)
class Scores:
    """What one column says about the label."""

    mutual: float
    corrected: float
    adjusted: float
    """Adjusted mutual information, arithmetic mean; equal to scikit-learn's."""
    determined: float
    """Share of the label's entropy above chance that the column removes; 1 means that it copies the label."""


class Chance:
    """What a random label with these class counts would show: entropy of c rows, its spread, p-values."""

    def __init__(self, classes: Ints, seed: int = 0) -> None:
        self.counts = classes.astype(np.int64)
        """Rows of each class as given, empty classes included."""
        self.classes = classes[classes > 0].astype(np.int64)
        self.rows = int(self.classes.sum())
        self.entropy = entropy(self.classes)
        self.seed = seed
        self._expected: dict[int, float] = {0: 0.0, 1: 0.0}
        self._variance: dict[int, float] = {0: 0.0, 1: 0.0}

    def expected(self, counts: Ints) -> Floats:
        """Return the expected entropy of the label over each number of rows in `counts`."""
        distinct, where = np.unique(counts, return_inverse=True)
        new = np.asarray([c for c in distinct.tolist() if c not in self._expected], dtype=np.int64)
        if len(new):
            total = np.zeros(len(new))
            for size in self.classes.tolist():
                total += _expected_term(new, size, self.rows)
            self._expected.update(zip(new.tolist(), total.tolist(), strict=True))
        return np.asarray([self._expected[c] for c in distinct.tolist()])[where]

    def variance(self, counts: Ints) -> Floats:
        """Return the variance of that entropy, by 256 seeded draws for each number of rows."""
        distinct, where = np.unique(counts, return_inverse=True)
        for count in distinct.tolist():
            if count not in self._variance:
                generator = np.random.default_rng([self.seed, count])
                drawn = generator.multivariate_hypergeometric(self.classes, count, size=256, method="marginals")
                self._variance[count] = float(np.var(np.log(count) - xlogx(drawn).sum(axis=1) / count))
        return np.asarray([self._variance[c] for c in distinct.tolist()])[where]

    def scores(self, table: Contingency) -> Scores:
        """Return plain, corrected and adjusted information of one column."""
        weight = table.weight
        rows = float((weight * table.values).sum())
        if rows == 0 or self.rows == 0:
            return Scores(0.0, 0.0, 0.0, 0.0)
        within = xlogx(table.values) - np.add.reduceat(xlogx(table.cells), table.starts)
        inside = (weight * within).sum() / rows
        by_chance = float((weight * table.values * self.expected(table.values)).sum() / rows)
        own = float(np.log(self.rows) - (weight * xlogx(table.values)).sum() / rows)
        corrected = by_chance - inside
        room = 0.5 * (own + self.entropy) - (self.entropy - by_chance)
        return Scores(
            mutual=float(self.entropy - inside),
            corrected=float(corrected),
            adjusted=float(corrected / room) if room > 1e-12 else 0.0,
            determined=float(corrected / by_chance) if by_chance > 0.1 * self.entropy > 0 else 0.0,
        )

    def p_value(self, table: Contingency, corrected: float) -> float:
        """Return how often a random relabelling scores at least `corrected`; at least 1 / (DRAWS + 1)."""
        rows = float(table.values.sum())
        if rows == 0 or len(self.classes) < 2:
            return 1.0
        if len(table.values) > _DIRECT_VALUES or table.weights is not None:
            deviations = corrected / max(self.spread(table), 1e-300)
            tail = 0.5 * float(torch.special.erfc(torch.tensor(deviations / np.sqrt(2.0))))
            return float(max(tail, 1.0 / (DRAWS + 1)))
        null = self._relabelled(table.values)
        # a tie up to rounding counts as reached: a column that is all one value must not look significant
        return float((1 + int((null >= corrected - 1e-12).sum())) / (DRAWS + 1))

    def spread(self, table: Contingency) -> float:
        """Return the standard deviation of the corrected score under chance, values taken as independent."""
        counted = np.asarray(table.weight * table.values)
        rows = float(counted.sum())
        return float(np.sqrt(((counted / rows) ** 2 * self.variance(table.values)).sum())) if rows else 0.0

    def promising(self, table: Contingency) -> bool:
        """Say whether the chi-square of a table is three deviations beyond its mean: what noise rarely is."""
        rows = float(table.values.sum())
        freedom = max((len(table.values) - 1) * (len(self.classes) - 1), 1)
        mutual = self.entropy * rows - float(xlogx(table.values).sum() - xlogx(table.cells).sum())
        return rows > 0 and 2 * mutual > freedom + 3 * float(np.sqrt(2 * freedom))

    def tail(self, table: Contingency, scores: Scores) -> float:
        """Return the chance of a score this high, also far below 1 / DRAWS, for tables of up to some hundred values.

        A gamma distribution with the mean and variance of the relabelled mutual information says how far out it is
        where no relabelling reaches it; most tables of noise are sorted out before by their chi-square.
        """
        if not self.promising(table):
            return 1.0
        if len(table.values) > _DIRECT_VALUES:
            deviations = scores.corrected / max(self.spread(table), 1e-300)
            return 0.5 * float(torch.special.erfc(torch.tensor(deviations / np.sqrt(2.0))))
        null = self._relabelled(table.values) + (scores.mutual - scores.corrected)
        reached = int((null >= scores.mutual - 1e-12).sum())
        if reached:
            return (1 + reached) / (DRAWS + 1)
        mean, variance = float(null.mean()), max(float(null.var()), 1e-300)
        return float(
            torch.special.gammaincc(
                torch.tensor(mean**2 / variance, dtype=torch.float64),
                torch.tensor(scores.mutual * mean / variance, dtype=torch.float64),
            )
        )

    def _relabelled(self, values: Ints) -> Floats:
        """Return the corrected score of DRAWS random relabellings of a column with these value counts."""
        generator = np.random.default_rng([self.seed, len(values), int(values[0])])
        rows, result = int(values.sum()), np.empty(DRAWS)
        base = float((values * self.expected(values)).sum() / rows)
        share = self.classes * (rows / self.rows)
        for draw in range(DRAWS):
            left, cells = values.copy(), 0.0
            for size in np.rint(share[:-1]).astype(np.int64).tolist():
                taken = generator.multivariate_hypergeometric(left, min(size, int(left.sum())), method="marginals")
                cells += float(xlogx(taken).sum())
                left = left - taken
            cells += float(xlogx(left).sum())
            result[draw] = base - (float(xlogx(values).sum()) - cells) / rows
        return result


def _expected_term(counts: Ints, size: int, rows: int) -> Floats:
    """Return E[-(k/c) log(k/c)], k ~ Hypergeometric(rows, size, c), for each c; windows of 12 deviations."""
    share = size / rows
    mean = counts * share
    width = 12.0 * np.sqrt(mean * (1 - share) * np.maximum(rows - counts, 0) / max(rows - 1, 1)) + 12.0
    low = np.maximum(np.maximum(0, counts + size - rows), np.floor(mean - width)).astype(np.int64)
    high = np.minimum(np.minimum(counts, size), np.ceil(mean + width)).astype(np.int64)
    result, start = np.empty(len(counts)), 0
    ends = np.cumsum(high - low + 1)
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CELLS, side="right")))
        part = slice(start, stop)
        result[part] = _windowed_mean(counts[part], low[part], high[part], size, rows)
        start = stop
    return result


def _windowed_mean(counts: Ints, low: Ints, high: Ints, size: int, rows: int) -> Floats:
    lengths = high - low + 1
    starts = np.cumsum(lengths) - lengths
    k = np.arange(int(lengths.sum())) - np.repeat(starts - low, lengths)
    c = np.repeat(counts, lengths)
    weight = -(
        _log_factorial(k) + _log_factorial(size - k) + _log_factorial(c - k) + _log_factorial(rows - size - c + k)
    )
    weight = np.exp(weight - np.repeat(np.maximum.reduceat(weight, starts), lengths))
    ratio = k / c
    surprise = -ratio * np.log(np.where(k > 0, ratio, 1.0))
    return np.asarray(np.add.reduceat(weight * surprise, starts) / np.add.reduceat(weight, starts))


def _log_factorial(counts: Ints) -> Floats:
    return np.asarray(torch.lgamma(torch.from_numpy(counts.astype(np.float64) + 1.0)).numpy())


def adjacent_counts(ordered: NDArray[Any]) -> Ints:
    """Return the lengths of the runs of equal values of a sorted array."""
    if not len(ordered):
        return np.empty(0, dtype=np.int64)
    edges = np.flatnonzero(ordered[1:] != ordered[:-1])
    return np.asarray(np.diff(np.r_[-1, edges, len(ordered) - 1]), dtype=np.int64)


def shifted_information(column: NDArray[Any], target: NDArray[Any]) -> float:
    """Return OutRank's cardinality-aware score of two columns of equal length, in one pass instead of one per value.

    The background of value x is the target of the rows shifted by c_x, so rows must come in an order that carries
    no information (see `sample.py`). It is not symmetric, and all-unique columns score 0.
    """
    return ShiftedColumn(column).score(ShiftedColumn(target))


class ShiftedColumn:
    """A column coded once, to be scored against many others."""

    def __init__(self, column: NDArray[Any]) -> None:
        _, codes, counts = np.unique(column, return_inverse=True, return_counts=True)
        self.codes = codes.astype(np.uint64)
        self.counts = counts.astype(np.int64)
        self.shifted = (np.arange(len(codes)) + counts[codes]) % max(len(codes), 1)
        self.entropy = entropy(counts)

    def score(self, target: ShiftedColumn) -> float:
        """Return sum_x (c_x / n) (b(x) - h(x)) of this column about `target`."""
        width = np.uint64(len(target.counts))
        seen = np.sort(self.codes * width + target.codes)
        chance = np.sort(self.codes * width + target.codes[self.shifted])
        difference = xlogx(adjacent_counts(seen)).sum() - xlogx(adjacent_counts(chance)).sum()
        return float(difference / max(len(self.codes), 1))
