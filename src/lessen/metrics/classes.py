"""Metrics of classification and regression: accuracy and squared error."""

from __future__ import annotations

import numpy as np

from lessen.metrics.base import RULE, Floats, MeanMetric
from lessen.metrics.outcomes import Outcomes


class Accuracy(MeanMetric):
    """Share of examples whose highest score is the target class (score [n, classes], target [n])."""

    name = "accuracy"

    def each(self, outcomes: Outcomes) -> Floats:
        """Return 1 for each example classified right."""
        right: Floats = (np.argmax(outcomes["score"], axis=1) == outcomes["target"]).astype(np.float64)
        return right

    def chance(self, outcomes: Outcomes) -> float:
        """Return the share of the most frequent class."""
        return float(np.unique(outcomes["target"], return_counts=True)[1].max() / len(outcomes))

    def resolution(self, outcomes: Outcomes) -> float:
        """Return 3 / n: the upper bound of a loss of which none was seen in n examples."""
        return RULE / len(outcomes)


class MeanSquaredError(MeanMetric):
    """Mean squared error over examples and outputs."""

    name, title = "mse", "mean squared error"
    higher_is_better = False

    def each(self, outcomes: Outcomes) -> Floats:
        """Return each example's squared error, averaged over its outputs."""
        error = (outcomes["score"].astype(np.float64) - outcomes["target"].astype(np.float64)) ** 2
        per_example: Floats = error.reshape(len(error), -1).mean(axis=1)
        return per_example

    def chance(self, outcomes: Outcomes) -> float:
        """Return the variance of the targets: the error of their mean."""
        return float(outcomes["target"].astype(np.float64).var(axis=0).mean())
