"""Is the compact model as good as the reference? A paired bootstrap, and a verdict that may be "not enough data".

loss of quality      0 ........ margin ........
within margin        [--x--]                       the whole interval lies at or below the margin
worse                            [--x--]           the whole interval lies above it
not enough data           [----x----]              the interval contains the margin
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lessen.metrics import Floats, Metric, Outcomes, bootstrap_weights

Verdict = Literal["within margin", "worse", "not enough data to say"]
WITHIN: Verdict = "within margin"
WORSE: Verdict = "worse"
UNKNOWN: Verdict = "not enough data to say"

RESAMPLES = 1000
LARGE = 200_000
"""Above this many test examples 200 resamples are drawn: the interval is narrow and its ends need fewer digits."""
_CHUNK = 50
# two-sided 95 % quantiles of Student's t for 2 to 10 degrees of freedom; larger samples use the last
_STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}


@dataclass(frozen=True)
class Difference:
    """Compact minus reference, in the metric's own unit and sign, averaged over seeds, with a 95 % interval."""

    value: float
    low: float | None
    high: float | None
    per_seed: tuple[float, ...]
    examples: int | None
    source: str
    """What the interval accounts for: "examples and seeds", "examples", "seeds" or "nothing"."""
    higher_is_better: bool = True

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


class PairedBootstrap:
    """Resamples of the test units, drawn once and applied to every model, so that differences are paired.

    Args:
        outcomes: of any model; the others must hold the same units.
        resamples: bootstrap rows; fewer for very large test sets by default.
    """

    def __init__(self, outcomes: Outcomes, resamples: int | None = None, seed: int = 0) -> None:
        self.outcomes = outcomes
        count = resamples or (RESAMPLES if len(outcomes) <= LARGE else 200)
        self._counts = [
            bootstrap_weights(len(outcomes), min(_CHUNK, count - start), seed + start).astype(np.uint8)
            for start in range(0, count, _CHUNK)
        ]
        self._generator_seed = seed

    def values(self, metric: Metric, outcomes: Outcomes) -> Floats:
        """Return the metric on all units, then on every resample: [1 + resamples].

        Raises:
            TaskError: the metric is undefined on these outcomes, or their units are others.
        """
        self.outcomes.check_same_units(outcomes)
        parts = [np.array([metric(outcomes)])]
        for counts in self._counts:
            with np.errstate(invalid="ignore", divide="ignore"):
                parts.append(metric.weighted(outcomes, counts.astype(np.float64)))
        return np.concatenate(parts)

    def difference(self, metric: Metric, reference: Mapping[int, Floats], compact: Mapping[int, Floats]) -> Difference:
        """Compare two models from their `values`, paired by seed and by resample.

        The interval adds the spread over seeds to that over examples: seeds are resampled too, rescaled by
        sqrt(k / (k - 1)) so that k seeds give the variance s^2 / k (Rao and Wu 1988).
        """
        seeds = sorted(set(reference) & set(compact))
        paired = np.stack([compact[seed] - reference[seed] for seed in seeds], axis=1)
        low, high = _percentiles(_over_seeds(paired[1:], self._generator_seed))
        return Difference(
            value=float(paired[0].mean()),
            low=low,
            high=high,
            per_seed=tuple(float(value) for value in paired[0]),
            examples=len(self.outcomes),
            source="examples and seeds" if len(seeds) > 1 else "examples",
            higher_is_better=metric.higher_is_better,
        )


def difference_over_seeds(per_seed: list[float], higher_is_better: bool = True) -> Difference:
    """Return the mean difference with Student's interval over seeds (three or more), where no predictions were kept."""
    mean, half = float(np.mean(per_seed)), None
    if len(per_seed) >= 3:
        quantile = _STUDENT[min(len(per_seed) - 1, 10)]
        half = quantile * float(np.std(per_seed, ddof=1)) / len(per_seed) ** 0.5
    return Difference(
        value=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        per_seed=tuple(per_seed),
        examples=None,
        source="nothing" if half is None else "seeds",
        higher_is_better=higher_is_better,
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
        return Judgement(UNKNOWN, "no interval: keep predictions, or run three seeds or more")
    if low > margin:
        return Judgement(WORSE, f"the loss is above the margin of {margin:g} over its whole 95 % interval")
    if high > margin:
        return Judgement(UNKNOWN, f"the 95 % interval contains the margin of {margin:g}")
    if resolution > margin:
        return Judgement(UNKNOWN, f"too few examples: they cannot resolve less than {resolution:.2g}")
    return Judgement(WITHIN, f"the loss is at most the margin of {margin:g} over its whole 95 % interval")


def no_better_than_chance(metric: Metric, values: Mapping[int, Floats], outcomes: Outcomes) -> bool:
    """Return True when the reference's 95 % interval reaches the best constant answer: nothing can be compared."""
    level = metric.chance(outcomes)
    if level is None:
        return False
    low, high = _percentiles(np.mean([row[1:] for row in values.values()], axis=0))
    if low is None or high is None:
        return True
    return low <= level if metric.higher_is_better else high >= level


def _over_seeds(paired: Floats, seed: int) -> Floats:
    """Return one draw a row of `paired` [resamples, seeds], with the seeds resampled as well."""
    count = paired.shape[1]
    mean = paired.mean(axis=1)
    if count < 2:
        return np.asarray(mean)
    picks = np.random.default_rng(seed).integers(count, size=paired.shape)
    drawn = np.take_along_axis(paired, picks, axis=1).mean(axis=1)
    return np.asarray(mean + (count / (count - 1)) ** 0.5 * (drawn - mean))


def _percentiles(draws: Floats) -> tuple[float | None, float | None]:
    """Return the 2.5 and 97.5 % points, or None when over one draw in twenty is undefined."""
    known = draws[np.isfinite(draws)]
    if len(known) < 0.95 * len(draws) or not len(known):
        return None, None
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _negated(value: Any) -> float | None:
    return None if value is None else -float(value)
