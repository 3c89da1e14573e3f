"""Quality metrics that can be bootstrapped: exact values, ties handled, per-example weights allowed.

Scores and targets are arrays with one row an example. Binary metrics take logits (any real numbers).
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


class AreaUnderCurve(Metric):
    """Area under the ROC curve, ties counted half; equal to scikit-learn's `roc_auc_score`."""

    name = "auc"

    def weighted(self, scores: Array, targets: Array, weights: Floats) -> Floats:
        """Return the AUC under each weighting.

        Raises:
            TaskError: the targets hold one class only, so that no AUC exists.
        """
        flat, labels = _binary(scores, targets)
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        # first index of each run of equal scores: ties share one step of the curve
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        positive = labels[order]
        result = np.empty(len(weights))
        for row, weight in enumerate(weights):
            result[row] = _auc_of_runs(weight[order], positive, starts)
        return result


def _auc_of_runs(weight: Floats, positive: Floats, starts: NDArray[np.intp]) -> float:
    hit = np.add.reduceat(weight * positive, starts)
    miss = np.add.reduceat(weight * (1.0 - positive), starts)
    below = np.cumsum(miss) - miss
    total = hit.sum() * miss.sum()
    return float((hit * (below + 0.5 * miss)).sum() / total) if total > 0 else float("nan")


class LogLoss(MeanMetric):
    """Mean negative log likelihood of binary labels given logits, in nats."""

    name = "logloss"
    higher_is_better = False

    def each(self, scores: Array, targets: Array) -> Floats:
        """Return softplus(-z) for positives and softplus(z) for negatives."""
        flat, labels = _binary(scores, targets, need_both=False)
        loss: Floats = np.logaddexp(0.0, flat) - labels * flat
        return loss


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


def _binary(scores: Array, targets: Array, need_both: bool = True) -> tuple[Floats, Floats]:
    flat = np.asarray(scores, dtype=np.float64).reshape(-1)
    labels = np.asarray(targets, dtype=np.float64).reshape(-1)
    if len(flat) != len(labels):
        raise TaskError(f"{len(flat)} scores for {len(labels)} labels: a binary metric needs one score an example")
    values = np.unique(labels)
    if not np.isin(values, (0.0, 1.0)).all():
        raise TaskError(f"binary labels must be 0 or 1, found {values[:5].tolist()}")
    if need_both and len(values) < 2:
        only = values.tolist() or "no examples"
        raise TaskError(f"AUC needs both classes, the labels hold only {only}; use a larger or different split")
    return flat, labels


AUC = AreaUnderCurve()
LOGLOSS = LogLoss()
ACCURACY = Accuracy()
MSE = MeanSquaredError()


def bootstrap_weights(examples: int, resamples: int, seed: int = 0) -> Floats:
    """Return bootstrap counts [resamples, examples]: each row resamples `examples` with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(examples, np.full(examples, 1.0 / examples), size=resamples).astype(np.float64)
