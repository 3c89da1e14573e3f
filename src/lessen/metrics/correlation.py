"""Rank correlation of scores with what people said, under any weights of the pairs."""

from __future__ import annotations

import numpy as np

from lessen.metrics.base import Floats, Metric, own_weights
from lessen.metrics.outcomes import Array, Outcomes


class Spearman(Metric):
    """Spearman's rank correlation of `score` and `target`; ties share the mean of their ranks."""

    name, title = "spearman", "Spearman correlation"

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return the correlation of mid-ranks, a unit of weight w counting as w units of equal values."""
        weights = own_weights(outcomes, weights)
        total = weights.sum(axis=1, keepdims=True)
        first, second = (_ranks(outcomes[name].reshape(-1), weights) for name in ("score", "target"))
        first -= (weights * first).sum(axis=1, keepdims=True) / total
        second -= (weights * second).sum(axis=1, keepdims=True) / total
        shared = (weights * first * second).sum(axis=1)
        spread = (weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(shared / np.sqrt(spread), dtype=np.float64)

    def chance(self, outcomes: Outcomes) -> float:  # noqa: ARG002 - the same for any targets
        """Return 0: an order that has nothing to do with the targets'."""
        return 0.0


def _ranks(values: Array, weights: Floats) -> Floats:
    """Return the mid-rank of each unit for each row of weights [resamples, units]."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(place.reshape(-1), kind="stable")
    held = np.add.reduceat(weights[:, order], np.cumsum(counts) - counts, axis=1)
    middle = held.cumsum(axis=1) - held / 2.0
    return np.asarray(middle[:, place.reshape(-1)], dtype=np.float64)
