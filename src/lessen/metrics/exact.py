"""Counts of answers that changed: intervals that hold at any number of examples, and the paired test of two models.

           model b right   wrong
model a right    same      lost         flips = lost + gained: right to wrong, and wrong to right
        wrong   gained     same         net loss = (lost - gained) / n

The interval of a share is Clopper and Pearson's (Biometrika 26, 1934), but for no flip at all it ends at 3 / n, not at
3.69 / n: all of the 5 % is spent on the side that exists. Lower ends are moved down to 3 / n where that would leave
true shares just above 3 / n with less than 95 %, so that the family as a whole keeps its promise (`exact_interval`).
The interval of a net loss inverts the score test of Tango (Statistics in Medicine 17, 1998), with a guard for few
flips.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from lessen.errors import ConfigError
from lessen.metrics.base import Floats

_SLACK = 0.004267
"""Over -log(0.05), so that 3 / n it is: room for counts that are never seen at so small a share."""
_STEPS = 60
_GUARD = 0.5
"""Continuity correction of the net loss, in answers: committed simulations hold it to 95 % (benchmarks/judges)."""


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), by Lentz's continued fraction.

    Args:
        a, b: above 0; x: from 0 to 1.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1.0), tiny)
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 / _away(1.0 + term * d, tiny)
            c = _away(1.0 + term / c, tiny)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(log) * value / a


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def at_least(count: int, trials: int, share: float) -> float:
    """Return the chance of `count` or more of `trials`, each with the chance `share`."""
    return 1.0 if count <= 0 else 0.0 if count > trials else incomplete_beta(count, trials - count + 1.0, share)


@lru_cache(maxsize=65_536)
def exact_interval(count: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval of a share that holds the truth with at least `confidence`, whatever the share is.

    Args:
        count: how many of `trials` were seen, 0 to `trials`.

    Raises:
        ConfigError: no trial, or a count that so many trials cannot give.
    """
    if trials < 1 or not 0 <= count <= trials:
        raise ConfigError(
            f"{count} of {trials} is no share: give at least one example, and no more seen than there are"
        )
    spare = 1.0 - confidence
    if count in (0, trials):  # one end of the range: no rounding may open a gap between it and the ends moved to it
        none = _none_seen(trials, spare)
        return (0.0, none) if count == 0 else (1.0 - none, 1.0)
    return _lower(count, trials, spare), 1.0 - _lower(trials - count, trials, spare)


def _lower(count: int, trials: int, spare: float) -> float:
    """Return the lower end of 1 to trials - 1 seen; the upper one is that of what was not seen."""
    low = _tail_root(count, trials, spare / 2.0)
    none, plain = _none_seen(trials, spare), 1.0 - (spare / 2.0) ** (1.0 / trials)
    if none >= plain or low <= none:
        return low
    # between both ends of "none seen" a miss above may add to the miss of nothing seen: too often at either end?
    for share in (none, min(low, plain)):
        if (1.0 - share) ** trials + at_least(count, trials, share) > spare:
            return none
    return low


def _none_seen(trials: int, spare: float) -> float:
    """Return the upper end of a share of which nothing was seen."""
    return min((_SLACK - math.log(spare)) / trials, 1.0 - float((spare / 2.0) ** (1.0 / trials)))


def _tail_root(count: int, trials: int, chance: float) -> float:
    """Return the share at which `count` or more have this chance."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if at_least(count, trials, middle) < chance else (low, middle)
    return low


def net_loss_interval(
    lost: Floats | int, gained: Floats | int, trials: int, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Return an interval of the net loss (lost - gained) / trials of two models on the same examples.

    Args:
        lost, gained: answers that went from right to wrong and back; numbers, or arrays of one shape.

    Raises:
        ConfigError: no trial, or more flips than trials.
    """
    b, c = np.broadcast_arrays(np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64))
    if trials < 1 or ((b + c) > trials).any() or (b < 0).any() or (c < 0).any():
        raise ConfigError(f"{trials} examples cannot hold these flips: give at least one example and no more flips")
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    low, high = -_upper_net(c, b, trials, z), _upper_net(b, c, trials, z)
    end = -math.log(1.0 - confidence) + _SLACK  # no flip seen: nothing moved by more than 3 / n
    none = (b + c) == 0
    return np.where(none, -min(1.0, end / trials), low), np.where(none, min(1.0, end / trials), high)


def _upper_net(b: Floats, c: Floats, n: int, z: float) -> Floats:
    """Return the largest net loss that Tango's score test, with its guard, does not refuse."""
    estimate = (b - c) / n
    low, high = estimate.copy(), np.ones_like(estimate)
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        a2 = 2.0 * n
        b2 = -b - c + (2.0 * n - b + c) * middle
        c2 = -c * middle * (1.0 - middle)
        q = (np.sqrt(np.maximum(b2**2 - 4.0 * a2 * c2, 0.0)) - b2) / (2.0 * a2)
        variance = n * (2.0 * q + middle * (1.0 - middle))
        score = (n * middle - (b - c) - _GUARD) / np.sqrt(np.maximum(variance, 1e-300))
        kept = score <= z
        low, high = np.where(kept, middle, low), np.where(kept, high, middle)
    return high


def paired_p(lost: int, gained: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: are answers lost as often as gained?

    It errs on 5 % of pairs of equally good models at most, whatever their number of examples.
    """
    flips = lost + gained
    if flips == 0:
        return 1.0
    return min(1.0, 2.0 * at_least(max(lost, gained), flips, 0.5))
