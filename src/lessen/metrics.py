"""Quality metrics that can be bootstrapped: exact values, ties handled, per-example weights allowed.

Scores and targets are arrays with one row an example. Binary metrics take logits (any real numbers).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

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


class GroupAreaUnderCurve(Metric):
    """gAUC: AUC inside each group (a user, a query), averaged with the group's examples as weight.

    Groups with one class only are left out, as in DIN (arXiv 1706.06978) and FuxiCTR.
    """

    name = "gauc"

    def __init__(self, groups: Array) -> None:
        """Remember the group of each example, one value a row in the order of the scores."""
        self.groups = np.unique(groups, return_inverse=True)[1].reshape(-1)

    def weighted(self, scores: Array, targets: Array, weights: Floats) -> Floats:
        """Return the gAUC under each weighting.

        Raises:
            TaskError: the groups are not one an example, or no group has both classes.
        """
        flat, labels = _binary(scores, targets)
        if len(self.groups) != len(flat):
            raise TaskError(f"{len(self.groups)} groups for {len(flat)} scores: gAUC needs one group an example")
        order = np.lexsort((flat, self.groups))
        group, ordered = self.groups[order], flat[order]
        # a run is equal scores inside one group; `first` is the first run of each group
        starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]) | (group[1:] != group[:-1])])
        first = np.flatnonzero(np.r_[True, np.diff(group[starts]) != 0])
        values = [_grouped_auc(weight[order], labels[order], starts, first) for weight in weights]
        if np.isnan(values).all():
            raise TaskError("gAUC needs a group with both classes; every group holds one class only")
        return np.array(values)


def _grouped_auc(weight: Floats, positive: Floats, starts: NDArray[np.intp], first: NDArray[np.intp]) -> float:
    hit = np.add.reduceat(weight * positive, starts)
    miss = np.add.reduceat(weight * (1.0 - positive), starts)
    runs = np.diff(np.r_[first, len(starts)])
    before = np.cumsum(miss) - miss
    below = before - np.repeat(before[first], runs)
    area = np.add.reduceat(hit * (below + 0.5 * miss), first)
    hits, misses = np.add.reduceat(hit, first), np.add.reduceat(miss, first)
    usable = (hits > 0) & (misses > 0)
    if not usable.any():
        return float("nan")
    share = (hits + misses)[usable]
    return float((area[usable] / (hits * misses)[usable] * share).sum() / share.sum())


class RelativeInformationGain(Metric):
    """1 - log loss / entropy of the share of positives: 0 says no better than that share, 1 is perfect."""

    name = "rig"

    def weighted(self, scores: Array, targets: Array, weights: Floats) -> Floats:
        """Return the gain under each weighting. Raises TaskError where the targets hold one class only."""
        labels = _binary(scores, targets)[1]
        rate = weights @ labels / weights.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
            return np.asarray(1.0 - LOGLOSS.weighted(scores, targets, weights) / entropy)


class CalibrationRatio(Metric):
    """Expected over observed positives: the mean of sigmoid(logit) by the mean label; 1 is calibrated on the whole."""

    name = "calibration_ratio"

    def weighted(self, scores: Array, targets: Array, weights: Floats) -> Floats:
        """Return the ratio under each weighting. Raises TaskError where the targets hold one class only."""
        flat, labels = _binary(scores, targets)
        return np.asarray((weights @ _sigmoid(flat)) / (weights @ labels))


@dataclass(frozen=True)
class CalibrationBin:
    """Examples whose predictions lie next to each other: how many, what was expected, what was observed."""

    examples: int
    expected: float
    observed: float


def calibration_bins(scores: Array, targets: Array, bins: int = 10) -> list[CalibrationBin]:
    """Cut the examples by predicted probability into `bins` of equal size and compare expected with observed rates."""
    flat, labels = _binary(scores, targets, need_both=False)
    chance, order = _sigmoid(flat), np.argsort(flat, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [CalibrationBin(len(part), float(chance[part].mean()), float(labels[part].mean())) for part in parts]


def calibration_error(scores: Array, targets: Array, bins: int = 10) -> float:
    """Return the mean distance between expected and observed rate over equal-size bins, weighted by examples."""
    cut = calibration_bins(scores, targets, bins)
    return sum(part.examples * abs(part.expected - part.observed) for part in cut) / sum(part.examples for part in cut)


def _sigmoid(logits: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -logits))


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
RELATIVE_INFORMATION_GAIN = RelativeInformationGain()
CALIBRATION_RATIO = CalibrationRatio()


def bootstrap_weights(examples: int, resamples: int, seed: int = 0) -> Floats:
    """Return bootstrap counts [resamples, examples]: each row resamples `examples` with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(examples, np.full(examples, 1.0 / examples), size=resamples).astype(np.float64)
