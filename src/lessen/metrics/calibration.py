"""Calibration: do examples predicted at 3 % turn out positive 3 % of the time? Expected against observed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lessen.metrics.base import Floats, SumMetric, binary, clicks, split_targets
from lessen.metrics.intervals import Z
from lessen.metrics.outcomes import Array, Outcomes


class CalibrationRatio(SumMetric):
    """Expected over observed positives: the mean of sigmoid(logit) by the mean label; 1 is calibrated on the whole."""

    name, title = "calibration_ratio", "expected over observed"

    def sums(self, outcomes: Outcomes) -> Floats:
        """Return probability and label of each example. Raises TaskError where the labels hold one class only."""
        flat, labels = clicks(outcomes)
        return np.stack([sigmoid(flat), labels], axis=1)

    def of_sums(self, totals: Floats) -> Floats:
        """Return expected over observed."""
        return np.asarray(totals[..., 0] / totals[..., 1])


@dataclass(frozen=True)
class CalibrationBin:
    """Examples whose predictions lie next to each other: how many, what was expected, what was observed.

    `low` and `high` are the 95 % interval of the observed rate (Wilson's, on the effective number of examples).
    """

    examples: int
    expected: float
    observed: float
    low: float
    high: float

    @property
    def covered(self) -> bool:
        """Say whether the expected rate lies in the interval of the observed one."""
        return self.low <= self.expected <= self.high


def calibration_bins(scores: Array, targets: Array, bins: int = 10) -> list[CalibrationBin]:
    """Cut the examples by predicted probability into `bins` of equal size and compare expected with observed rates."""
    flat, labels = binary(scores, targets, need_both=False)
    weights = split_targets(targets)[1]
    own = np.ones(len(flat)) if weights is None else weights
    chance, order = sigmoid(flat), np.argsort(flat, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part) and own[part].any()]
    return [_bin(chance[part], labels[part], own[part]) for part in parts]


def _bin(chance: Floats, labels: Floats, weights: Floats) -> CalibrationBin:
    expected, observed = (float(np.average(values, weights=weights)) for values in (chance, labels))
    low, high = wilson(observed, float(weights.sum() ** 2 / (weights**2).sum()))
    return CalibrationBin(len(labels), expected, observed, low, high)


def wilson(rate: float, examples: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a rate seen in `examples` independent examples."""
    shrink = 1.0 + Z**2 / examples
    middle = (rate + Z**2 / (2.0 * examples)) / shrink
    half = Z / shrink * math.sqrt(rate * (1.0 - rate) / examples + Z**2 / (4.0 * examples**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(scores: Array, targets: Array, bins: int = 10) -> float:
    """Return the mean distance between expected and observed rate over equal-size bins, weighted by examples."""
    cut = calibration_bins(scores, targets, bins)
    return sum(part.examples * abs(part.expected - part.observed) for part in cut) / sum(part.examples for part in cut)


def sigmoid(logits: Floats) -> Floats:
    """Return probabilities of logits without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
