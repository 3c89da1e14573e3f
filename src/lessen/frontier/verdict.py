"""Is the compact model as good as the reference? A paired difference with an interval, and one of four verdicts.

loss of quality      0 ........ margin ........
better      [--x--]                                the whole interval lies below zero: more than within the margin
within margin        [--x--]                       it lies at or below the margin, and may reach below zero
worse                            [--x--]           it lies above the margin
not enough data           [----x----]              it contains the margin
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lessen.metrics import Floats
from lessen.metrics.intervals import ErrorParts, bounded_interval, crossed_interval, error_parts

Verdict = Literal["better", "within margin", "worse", "not enough data to say"]
BETTER: Verdict = "better"
WITHIN: Verdict = "within margin"
WORSE: Verdict = "worse"
UNKNOWN: Verdict = "not enough data to say"
KEPT = (BETTER, WITHIN)
"""Verdicts that prove a loss of at most the margin."""


@dataclass(frozen=True)
class Difference:
    """Compact minus reference, in the metric's own unit and sign, averaged over seeds, with a 95 % interval."""

    value: float
    low: float | None
    high: float | None
    per_seed: tuple[float, ...]
    examples: int | None
    source: str
    """What the interval accounts for: "examples and seeds"; with one seed "examples", which says nothing of others;
    the same with "bounds of" in front where outcomes were not kept and only each model's own interval is known; or
    "nothing"."""
    higher_is_better: bool = True
    parts: ErrorParts | None = None
    """Where its error comes from, for planning the next study; None where outcomes were not kept."""

    @property
    def loss(self) -> tuple[float, float | None, float | None]:
        """The loss of quality (value, low, high): positive is worse, whichever way the metric points."""
        if self.higher_is_better:
            return -self.value, _negated(self.high), _negated(self.low)
        return self.value, self.low, self.high


@dataclass(frozen=True)
class Judgement:
    """A verdict and, in one clause, why."""

    verdict: Verdict
    reason: str


def paired_difference(
    reference: Mapping[int, Floats],
    compact: Mapping[int, Floats],
    examples: int,
    higher_is_better: bool = True,
    resolution: float = 0.0,
) -> Difference:
    """Compare two models seed by seed, from the values of one metric; see `Metric.jackknife`.

    Args:
        reference, compact: by seed, the metric on all test units and without each group of them, [1 + groups].
        examples: number of test units.
        resolution: smallest loss that they resolve: half the interval where no unit tells the models apart.
    """
    seeds = sorted(set(reference) & set(compact))
    values = np.stack([compact[seed] - reference[seed] for seed in seeds], axis=1)
    low, high = crossed_interval(values, resolution)
    source = "examples and seeds" if len(seeds) > 1 else "examples"
    return Difference(
        float(values[0].mean()),
        low,
        high,
        tuple(float(value) for value in values[0]),
        examples,
        "nothing" if low is None else source,
        higher_is_better,
        error_parts(values),
    )


def difference_over_seeds(
    per_seed: Sequence[float], deviations: Sequence[float | None] = (), higher_is_better: bool = True
) -> Difference:
    """Compare two models where no outcomes were kept: what the seeds share through their test set is only bounded.

    Args:
        per_seed: compact minus reference.
        deviations: for each seed a bound of the standard deviation over examples, such as the sum of both models'.
    """
    values, bounds = np.array(per_seed), [bound for bound in deviations if bound is not None]
    low, high = None, None
    if len(bounds) == len(values):
        low, high = bounded_interval(values, np.array(bounds))
    source = "bounds of examples and seeds" if len(values) > 1 else "bounds of examples"
    return Difference(
        float(values.mean()),
        low,
        high,
        tuple(float(value) for value in values),
        None,
        "nothing" if low is None else source,
        higher_is_better,
    )


def judge(difference: Difference | None, margin: float, resolution: float = 0.0, doubt: str = "") -> Judgement:
    """Return the verdict on a quality difference.

    Args:
        margin: largest loss of quality that the user accepts, in the metric's unit, above zero.
        resolution: smallest loss that the test data can resolve at all; see `Metric.resolution`.
        doubt: a reason why no verdict can be given, such as a reference that is no better than chance.
    """
    if doubt:
        return Judgement(UNKNOWN, doubt)
    if difference is None:
        return Judgement(UNKNOWN, "quality was not measured")
    _, low, high = difference.loss
    if low is None or high is None:
        return Judgement(UNKNOWN, "no interval: the outcomes were not kept; run the study again")
    if low > margin:
        return Judgement(WORSE, f"the loss is above the margin of {margin:g} over its whole 95 % interval")
    if high > margin:
        return Judgement(UNKNOWN, f"the 95 % interval contains the margin of {margin:g}")
    if resolution > margin:
        return Judgement(UNKNOWN, f"too few examples: they cannot resolve less than {resolution:.2g}")
    if high < 0:
        return Judgement(BETTER, "quality is gained over the whole 95 % interval")
    return Judgement(WITHIN, f"the loss is at most the margin of {margin:g} over its whole 95 % interval")


def no_better_than_chance(level: float | None, values: Mapping[int, Floats], higher_is_better: bool) -> bool:
    """Return True when the interval of the references over examples reaches `level`: nothing can be compared.

    Args:
        level: what an answer that ignores the inputs would score; None where that is not known.
        values: by seed, `Metric.jackknife` of the reference.
    """
    if level is None:
        return False
    low, high = crossed_interval(np.mean(list(values.values()), axis=0)[:, None])
    if low is None or high is None:
        return True
    return low <= level if higher_is_better else high >= level


def _negated(value: Any) -> float | None:
    return None if value is None else -float(value)
