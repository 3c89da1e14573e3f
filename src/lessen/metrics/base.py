"""What a metric is: exact values, ties handled, weights of examples and of resamples allowed.

Scores and targets are arrays with one row an example. Binary metrics take logits (any real numbers) and labels [n], or
[n, 2]: label and weight of each example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from lessen.errors import TaskError

Array = NDArray[np.generic]
Floats = NDArray[np.float64]


class Metric(ABC):
    """A number that judges scores against targets."""

    name: str
    higher_is_better: bool = True

    def __call__(self, scores: Array, targets: Array) -> float:
        """Return the metric on all examples."""
        return float(self.weighted(scores, targets, np.ones((1, len(targets))))[0])

    @abstractmethod
    def weighted(self, scores: Array, targets: Array, weights: Floats) -> Floats:
        """Return one value for each row of `weights` [resamples, examples]; a bootstrap resample is a row of counts."""


class MeanMetric(Metric):
    """A metric that is a mean over examples: subclasses give the value of each example."""

    @abstractmethod
    def each(self, scores: Array, targets: Array) -> Floats:
        """Return the value of every example, shape [examples]."""

    def weighted(self, scores: Array, targets: Array, weights: Floats) -> Floats:
        """Return the weighted mean of the per-example values."""
        return np.asarray(weights @ self.each(scores, targets) / weights.sum(axis=1), dtype=np.float64)


class Accuracy(MeanMetric):
    """Share of examples whose highest score is the target class (scores [examples, classes])."""

    name = "accuracy"

    def each(self, scores: Array, targets: Array) -> Floats:
        """Return 1 for each example classified right."""
        right: Floats = (np.argmax(scores, axis=1) == targets).astype(np.float64)
        return right


class MeanSquaredError(MeanMetric):
    """Mean squared error over examples and outputs."""

    name = "mse"
    higher_is_better = False

    def each(self, scores: Array, targets: Array) -> Floats:
        """Return each example's squared error, averaged over its outputs."""
        error = (scores.astype(np.float64) - targets.astype(np.float64)) ** 2
        per_example: Floats = error.reshape(len(error), -1).mean(axis=1)
        return per_example


def split_targets(targets: Array) -> tuple[Floats, Floats | None]:
    """Return labels and weights, float64 [n] each, of targets [n], or [n, 2] with the weight in the second column.

    Raises:
        TaskError: a weight is negative or not finite.
    """
    values = np.asarray(targets, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:
        return values.reshape(-1), None
    weights = values[:, 1]
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise TaskError("a weight of an example is negative, NaN or infinite; weights count how often it was seen")
    return values[:, 0], weights


def weighed(targets: Array, weights: Floats) -> Floats:
    """Return resampling weights [resamples, n] times the examples' own, if they have any.

    Raises:
        TaskError: all weights of the examples are zero.
    """
    own = split_targets(targets)[1]
    if own is not None and len(own) and not own.any():
        raise TaskError("all weights of the examples are zero, so that no metric exists")
    return weights if own is None else weights * own


def binary(scores: Array, targets: Array, need_both: bool = True) -> tuple[Floats, Floats]:
    """Return scores and labels as float64 [n].

    Raises:
        TaskError: their lengths differ, a label is not 0 or 1, or `need_both` and one class only has weight.
    """
    flat = np.asarray(scores, dtype=np.float64).reshape(-1)
    labels, weights = split_targets(targets)
    if len(flat) != len(labels):
        raise TaskError(f"{len(flat)} scores for {len(labels)} labels: a binary metric needs one score an example")
    values = np.unique(labels)
    if not np.isin(values, (0.0, 1.0)).all():
        raise TaskError(f"binary labels must be 0 or 1, found {values[:5].tolist()}")
    present = values if weights is None else np.unique(labels[weights > 0])
    if need_both and len(present) < 2:
        only = present.tolist() or "no examples"
        raise TaskError(f"AUC needs both classes, the labels hold only {only}; use a larger or different split")
    return flat, labels


def bootstrap_weights(examples: int, resamples: int, seed: int = 0) -> Floats:
    """Return bootstrap counts [resamples, examples]: each row resamples `examples` with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(examples, np.full(examples, 1.0 / examples), size=resamples).astype(np.float64)
