"""95 % intervals of what was measured by a few seeds on one shared test set: examples and seeds are crossed.

              unit 1   unit 2  ...  unit n        the mean over seeds errs in two independent ways:
    seed 1      .        .            .             seeds     spread^2 / k   known from k - 1 degrees of freedom
    seed 2      .        .            .             examples  shared^2       the same for all seeds: more do not help

Half width: c sqrt(shared^2 + spread^2 / k). The factor c lies between the normal quantile, right where examples are
all, and Student's for k - 1, right where seeds are all; `critical` gives it so that the interval covers the truth 95
times in 100 whatever the share of seeds. Few, lumpy units (one flipped answer moves an accuracy by 1 / n) get the width
and the shift of a score interval. The proof is a committed study: benchmarks/verdict/coverage.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lessen.metrics.base import Floats

Z = NormalDist().inv_cdf(0.975)
_SHAPES = {
    1: (15.0, 12.0),
    2: (2.5, 4.0),
    3: (1.65, 2.95),
    4: (1.4, 2.6),
    5: (1.28, 2.45),
    6: (1.2, 2.33),
    7: (1.17, 2.27),
    8: (1.14, 2.22),
}
_SHAPE = (1.1, 2.2)
Ends = tuple[float | None, float | None]


@dataclass(frozen=True)
class ErrorParts:
    """The sources of the error of a mean over seeds, each as a variance in the metric's unit squared."""

    groups: int
    alone: float
    """Of the mean over seeds, by its examples: with what each seed's own answers add."""
    shared: float
    """By the examples, the same for all seeds."""
    spread: float
    """Of one seed among the seeds; 0 with one seed, which does not show it."""
    third: float
    """Sum of the cubed effects of groups of units on the mean."""
    lump: tuple[float, float]
    """Size of one typical effect, and how one-sided the effects are."""


def error_parts(values: Floats) -> ErrorParts | None:
    """Return the parts of the error of the mean over seeds, or None where the units give none.

    Args:
        values: [1 + groups, seeds], as for `crossed_interval`.
    """
    whole, left = values[0], values[1:]
    known = left[np.isfinite(left).all(axis=1)]
    if len(known) < max(2, 0.95 * len(left)) or not np.isfinite(whole).all():
        return None
    groups, seeds = known.shape
    effects = math.sqrt((groups - 1) / groups) * (known.mean(axis=0) - known)  # of each group on each seed's value
    mean = effects.mean(axis=1)
    alone, third, lump = float(mean @ mean), float((mean**3).sum()), _lump(mean)
    shared, spread = alone, 0.0
    if seeds > 1:
        shared = max(0.0, (seeds**2 * alone - float((effects**2).sum())) / (seeds * (seeds - 1)))
        spread = float(whole.var(ddof=1))
    return ErrorParts(groups, alone, shared, spread, third, lump)


def crossed_interval(values: Floats, unseen: float = 0.0) -> Ends:
    """Return the 95 % interval (low, high) of the mean over seeds, or (None, None) where the units give none.

    Args:
        values: [1 + groups, seeds]: on all units, then with each group of units left out; see `Metric.jackknife`.
            Differences of two models are paired by subtracting theirs. One seed: the interval is over examples only.
        unseen: half width where no unit moved, so that they show no error at all; see `Metric.resolution`.
    """
    whole = values[0]
    parts = error_parts(values)
    if parts is None:
        return None, None
    groups, seeds = parts.groups, values.shape[1]
    alone, shared, third, lump = parts.alone, parts.shared, parts.third, parts.lump
    spread = parts.spread / seeds
    spare = Z**2 * lump[0] ** 2 * (1.0 - 0.75 * lump[1] ** 2)
    scale = (student(groups - 1) / Z) ** 2
    # several seeds never know more than they know of their own examples
    half = max(_half(scale * (shared + spare), spread, seeds - 1), Z * math.sqrt(scale * (alone + spare)))
    variance = max(alone, shared + spread)
    if variance == 0.0:
        return (float(whole[0]) - unseen, float(whole[0]) + unseen) if math.isfinite(unseen) else (None, None)
    tilt = third / variance  # one lump, with its sign, where a few units on one side are all that moved
    middle = float(whole.mean()) + Z**2 / 2.0 * tilt
    # counts are whole: the end towards which they are few lies half a lump further out
    return middle - half - max(0.0, tilt) / 2.0, middle + half - min(0.0, tilt) / 2.0


def deviation(values: Floats, unseen: float = 0.0) -> float | None:
    """Return the standard deviation of one value over test sets, such as the difference of two models of one seed.

    A record that carries it can be judged without outcomes; `bounded_interval` takes it.

    Args:
        values: [1 + groups], as one column of `crossed_interval`; unseen: as there.
    """
    low, high = crossed_interval(values[:, None], unseen)
    return None if low is None or high is None else (high - low) / (2.0 * Z)


def bounded_interval(values: Floats, deviations: Floats) -> Ends:
    """Return an interval that holds whatever the seeds share, where only bounds of their example errors are known.

    Args:
        values: [seeds]; deviations: [seeds], no less than the standard deviation of each over examples.
    """
    spread = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    half = _half(float(deviations.mean()) ** 2, spread, len(values) - 1)
    return float(values.mean()) - half, float(values.mean()) + half


def critical(share: float, freedom: int) -> float:
    """Return the factor c of the half width; `share` is that of the seeds in the variance, `freedom` their number - 1.

    c = z + (t - z) (1 - (1 - share)^a)^b, with a and b for each number of seeds chosen by numerical integration so that
    the coverage is 95 % for every true share, within 0.4 points from three seeds on. Satterthwaite's approximation has
    88 % with two seeds. It is up to 96.6 % with two seeds: no function of one spread is 95 % everywhere.
    """
    if share <= 0.0 or freedom < 1:
        return Z
    a, b = _SHAPES.get(freedom, _SHAPE)
    return Z + (student(freedom) - Z) * float((1.0 - (1.0 - share) ** a) ** b)


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, to six digits (Hill, Algorithm 396, CACM 13, 1970).

    Args:
        freedom: degrees of freedom, one or more.
    """
    if freedom <= 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return math.sqrt(2.0 / (0.05 * 1.95) - 2.0)
    a = 1.0 / (freedom - 0.5)
    b = 48.0 / a**2
    c = ((20700.0 * a / b - 98.0) * a - 16.0) * a + 96.36
    d = ((94.5 / (b + c) - 3.0) / b + 1.0) * math.sqrt(a * math.pi / 2.0) * freedom
    y = (d * 0.05) ** (2.0 / freedom)
    if y > 0.05 + a:
        x = -Z
        y = x * x
        if freedom < 5:
            c += 0.3 * (freedom - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b
        y = (((((0.4 * y + 6.3) * y + 36.0) * y + 94.5) / c - y - 3.0) / b + 1.0) * x
        y = math.expm1(a * y * y)
    else:
        y = (
            (
                1.0 / (((freedom + 6.0) / (freedom * y) - 0.089 * d - 0.822) * (freedom + 2.0) * 3.0)
                + 0.5 / (freedom + 4.0)
            )
            * y
            - 1.0
        ) * (freedom + 1.0) / (freedom + 2.0) + 1.0 / y
    return math.sqrt(freedom * y)


def _half(examples: float, spread: float, freedom: int) -> float:
    total = examples + spread
    return critical(spread / total, freedom) * math.sqrt(total) if total > 0 else 0.0


def _lump(effects: Floats) -> tuple[float, float]:
    """Return the size of one typical lump in the effects of units, and how one-sided they are, from -1 to 1.

    They are 1 / n and (b - c) / (b + c) for b answers gained and c lost of n. The size is negligible for many small
    effects.
    """
    square = float((effects**2).sum())
    if square <= 0.0:
        return 0.0, 0.0
    size = math.sqrt(float((effects**4).sum()) / square)
    return size, float(np.clip((effects**3).sum() / (square * size), -1.0, 1.0))
