"""Intervals for several comparisons at once, and quantiles of Student's t at any level."""

from __future__ import annotations

import math
from functools import lru_cache

from lessen.metrics.base import Floats
from lessen.metrics.exact import incomplete_beta


@lru_cache(maxsize=4096)
def student_quantile(chance: float, freedom: float) -> float:
    """Return the quantile of Student's t, by bisection of its distribution.

    Args:
        chance: from 0.5 to 1; freedom: degrees of freedom, above 0.
    """
    low, high = 0.0, 1.0
    while _below(high, freedom) < chance and high < 1e9:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _below(middle, freedom) < chance else (low, middle)
    return high


def _below(value: float, freedom: float) -> float:
    return 1.0 - 0.5 * incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + value * value))


def mean_interval(own: Floats, base: Floats, tested: int = 1, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval of the difference of two means that holds for `tested` of them at once (Welch, Bonferroni).

    Args:
        own, base: values of units, two and more of each.
    """
    value = float(own.mean() - base.mean())
    one, two = float(own.var(ddof=1)) / len(own), float(base.var(ddof=1)) / len(base)
    if one + two == 0.0:
        return value, value
    freedom = (one + two) ** 2 / (one**2 / (len(own) - 1) + two**2 / (len(base) - 1))
    half = student_quantile(1.0 - (1.0 - confidence) / (2.0 * max(1, tested)), freedom) * math.sqrt(one + two)
    return value - half, value + half
