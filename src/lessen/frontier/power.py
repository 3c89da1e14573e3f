"""How many test units and seeds a verdict needs, told before a study is run or from one that could not say.

One unit's paired difference errs by `deviation`; n units shared by k seeds leave deviation^2 / n, and seeds that differ
by `spread` leave spread^2 / k, as in `metrics.intervals`. Two answers, right or wrong, differ on a share `flips` of the
units, so that deviation^2 is flips - loss^2: the size of the test set follows from flips alone, not from the accuracy.
The figures are held to the verdicts themselves by simulation (tests/frontier/test_power.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from lessen.errors import ConfigError
from lessen.frontier.verdict import Difference
from lessen.metrics import Floats
from lessen.metrics.intervals import Z, critical

NORMAL = NormalDist()
MOST_SEEDS = 30
MOST_UNITS = 10**15
"""Test units that no plan goes beyond."""
_STEPS = 200


@dataclass(frozen=True)
class Errors:
    """What one unit and one seed add to the error of a difference, in the metric's unit."""

    deviation: float
    """Standard deviation of the paired difference of one unit."""
    spread: float = 0.0
    """Standard deviation of the loss from seed to seed, apart from the units they share."""
    lump: float = 0.0
    """What one unit moves at least when it moves: 1 for right and wrong answers, 0 for smooth metrics."""


def errors_of_flips(flips: float, loss: float = 0.0, spread: float = 0.0) -> Errors:
    """Return the errors of a metric that counts right answers.

    Args:
        flips: share of the units on which the two models differ in being right, above 0, at most 1.
        loss: true loss of accuracy, of the smaller model against the reference; below 0 is a gain.

    Raises:
        ConfigError: a share that is none, or a loss that so few flips cannot make.
    """
    if not 0.0 < flips <= 1.0:
        raise ConfigError(f"flips = {flips:g} is not accepted: give the share of answers that change, from 0 to 1")
    if not abs(loss) <= flips:
        raise ConfigError(f"a loss of {loss:g} needs at least as many flips; {flips:g} of the answers change")
    return Errors(math.sqrt(flips - loss**2), spread, 1.0)


def errors_of(difference: Difference) -> Errors | None:
    """Return the errors behind a difference that a study measured, or None where its outcomes were not kept.

    What seeds add by answering the shared units differently is counted as theirs: more units would lower it too.
    """
    parts, units = difference.parts, difference.examples
    if parts is None or units is None:
        return None
    return Errors(math.sqrt(parts.shared * units), math.sqrt(parts.spread), parts.lump[0] * units)


def power(errors: Errors, gap: float, units: float, seeds: int = 1) -> float:
    """Return the chance of a verdict.

    Args:
        gap: distance from the true loss to the margin, above 0: below the margin for "within margin", above it for
            "worse", from zero for "better".
        units: test units shared by all seeds; infinity asks what seeds alone allow.
    """
    shared = errors.deviation**2 / units
    if seeds == 1:  # the interval is over examples and says nothing of other seeds
        half = Z * math.sqrt(shared + (Z * errors.lump / units) ** 2)
        return NORMAL.cdf((gap - half) / math.sqrt(shared)) if shared else 1.0
    seen = errors.spread**2 / seeds * _variances(seeds - 1)
    total = shared + (Z * errors.lump / units) ** 2 + seen
    if not (total > 0).all():
        return 1.0
    factor = np.array([critical(share, seeds - 1) for share in seen / total])
    deviation = math.sqrt(shared + errors.spread**2 / seeds)
    return float(np.mean([NORMAL.cdf(value) for value in (gap - factor * np.sqrt(total)) / deviation]))


def units_needed(errors: Errors, gap: float, chance: float = 0.8, seeds: int = 1) -> int | None:
    """Return the smallest number of test units that give the verdict with `chance`, or None: these seeds never do.

    Raises:
        ConfigError: a gap or a chance for which no number exists, or none below `MOST_UNITS`.
    """
    if not (math.isfinite(gap) and gap > 0):
        raise ConfigError(
            "the true loss lies at the margin: no test set tells on which side; give another --loss or --margin"
        )
    if not 0.0 < chance < 1.0:
        raise ConfigError(f"power = {chance:g} is not accepted: give a chance between 0 and 1, such as 0.8")
    if power(errors, gap, math.inf, seeds) < chance:
        return None
    low, high = 1, 2
    while power(errors, gap, high, seeds) < chance:
        low, high = high, high * 2
        if high > MOST_UNITS:
            raise ConfigError(f"a gap of {gap:g} asks for more test units than anybody has ({MOST_UNITS:.0e})")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(errors, gap, middle, seeds) >= chance else (middle, high)
    return high


def seeds_needed(errors: Errors, gap: float, chance: float = 0.8) -> int | None:
    """Return the smallest number of seeds, of 2 to 30, with which some number of units gives the verdict, or None."""
    return next((k for k in range(2, MOST_SEEDS + 1) if power(errors, gap, math.inf, k) >= chance), None)


@lru_cache(maxsize=64)
def _variances(freedom: int) -> Floats:
    """Return an estimated variance of 1 at equally likely steps, for so many degrees of freedom."""
    drawn = np.random.default_rng(freedom).chisquare(freedom, 200_000) / freedom
    return np.quantile(drawn, (np.arange(_STEPS) + 0.5) / _STEPS)
