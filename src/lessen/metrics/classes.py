"""Metrics of classification and regression: accuracy, what single classes get, calibration of confidence, error."""

from __future__ import annotations

import numpy as np

from lessen.errors import TaskError
from lessen.metrics.base import RULE, Floats, Groups, MeanMetric, Metric, SumMetric, own_weights
from lessen.metrics.outcomes import Outcomes

BINS = 15
"""Of equal width, over the confidence in the answer (Guo et al., arXiv 1706.04599)."""


class TopAccuracy(MeanMetric):
    """Share of examples whose target is among the k highest scores (score [n, classes], target [n])."""

    name = "top"

    def __init__(self, k: int) -> None:
        """Count an answer as right within the first `k`. The lower of two classes with equal scores comes first."""
        self.k, self.name, self.title = k, f"top@{k}", f"top-{k} accuracy"

    def each(self, outcomes: Outcomes) -> Floats:
        """Return 1 for each example whose target is found."""
        scores, target = outcomes["score"].astype(np.float64), outcomes["target"].astype(np.intp)
        own = np.take_along_axis(scores, target[:, None], axis=1)
        before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < target[:, None]))
        return np.asarray(before.sum(axis=1) < self.k, dtype=np.float64)

    def chance(self, outcomes: Outcomes) -> float:
        """Return the share of the k most frequent classes."""
        counts = np.sort(np.unique(outcomes["target"], return_counts=True)[1])
        return float(counts[-self.k :].sum() / len(outcomes))

    def resolution(self, outcomes: Outcomes) -> float:
        """Return 3.69 / n: the end of the interval where none of n answers changed."""
        return RULE / len(outcomes)


class Accuracy(TopAccuracy):
    """Share of examples whose highest score is the target class (score [n, classes], target [n])."""

    name, title = "accuracy", "accuracy"

    def __init__(self) -> None:
        self.k = 1

    def each(self, outcomes: Outcomes) -> Floats:
        """Return 1 for each example classified right; targets that are no class are never right."""
        return np.asarray(np.argmax(outcomes["score"], axis=1) == outcomes["target"], dtype=np.float64)


class _ByClass(Metric):
    """A metric of what each class gets: its weight, that of answers naming it, and that of right ones."""

    def of_classes(self, right: Floats, actual: Floats, named: Floats) -> Floats:
        """Return the metric of weights [..., classes]."""
        raise NotImplementedError

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return the metric under each weighting."""
        target, named, classes = _answers(outcomes)
        own = own_weights(outcomes, weights)
        right = own * (target == named)
        parts = (_sums(right, target, classes), _sums(own, target, classes), _sums(own, named, classes))
        return np.asarray(self.of_classes(*parts), dtype=np.float64)

    def left_out(self, outcomes: Outcomes, groups: Groups, count: int) -> Floats:
        """Return the metric without each group: what is left of the weights of each class."""
        target, named, classes = _answers(outcomes)
        own = own_weights(outcomes, np.ones((1, len(target))))[0]
        parts: list[Floats] = []
        for weights, labels in ((own * (target == named), target), (own, target), (own, named)):
            within = np.bincount(groups * classes + labels, weights, count * classes).reshape(count, classes)
            parts.append(np.asarray(np.bincount(labels, weights, classes) - within, dtype=np.float64))
        return np.asarray(self.of_classes(*parts), dtype=np.float64)


class ClassRecall(_ByClass):
    """Share of one class's examples that are classified right."""

    name = "class-recall"

    def __init__(self, label: int) -> None:
        """Judge the examples whose target is `label`."""
        self.label, self.name, self.title = label, f"class-recall@{label}", f"recall of class {label}"

    def of_classes(self, right: Floats, actual: Floats, named: Floats) -> Floats:  # noqa: ARG002 - recall needs two
        """Return right over actual of the class; NaN where it has no example."""
        if self.label >= right.shape[-1]:
            raise TaskError(f"class {self.label} does not exist: the scores have {right.shape[-1]} classes")
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(right[..., self.label] / actual[..., self.label])

    def resolution(self, outcomes: Outcomes) -> float:
        """Return 3.69 / n, n the examples of the class."""
        return RULE / max(1, int((outcomes["target"] == self.label).sum()))


class MacroRecall(_ByClass):
    """Recall of each class, averaged over the classes that have examples: balanced accuracy."""

    name, title = "macro-recall", "mean recall of a class"

    def of_classes(self, right: Floats, actual: Floats, named: Floats) -> Floats:  # noqa: ARG002 - recall needs two
        """Return the mean of right over actual."""
        return _mean_of(right, actual)

    def chance(self, outcomes: Outcomes) -> float:
        """Return one over the number of classes: what one answer for all gets."""
        return 1.0 / len(np.unique(outcomes["target"]))

    def resolution(self, outcomes: Outcomes) -> float:
        """Return 3.69 / n, n the examples that as many of the rarest class would make in all."""
        counts = np.unique(outcomes["target"], return_counts=True)[1]
        return RULE / float(counts.min() * len(counts))


class MacroF1(_ByClass):
    """F1 of each class, averaged over the classes that have examples or answers."""

    name, title = "macro-f1", "macro F1"

    def of_classes(self, right: Floats, actual: Floats, named: Floats) -> Floats:
        """Return the mean of 2 right / (actual + named)."""
        return _mean_of(2.0 * right, actual + named)

    def resolution(self, outcomes: Outcomes) -> float:
        """Return what one example of the rarest class moves, times 3.69."""
        counts = np.unique(outcomes["target"], return_counts=True)[1]
        return RULE / float(counts.min() * len(counts))


class ExpectedCalibrationError(SumMetric):
    """Mean distance between confidence and accuracy over 15 bins of confidence (score: logits [n, classes])."""

    name, title = "ece", "calibration error"
    higher_is_better = False

    def sums(self, outcomes: Outcomes) -> Floats:
        """Return confidence less right, and one, of each example in the columns of its bin."""
        scores = outcomes["score"].astype(np.float64)
        chance = np.exp(scores - scores.max(axis=1, keepdims=True))
        confidence = (chance / chance.sum(axis=1, keepdims=True)).max(axis=1)
        right = scores.argmax(axis=1) == outcomes["target"]
        place = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
        found = np.zeros((len(scores), BINS + 1))
        found[np.arange(len(scores)), place] = confidence - right
        found[:, BINS] = 1.0
        return found

    def of_sums(self, totals: Floats) -> Floats:
        """Return the summed distances over the examples."""
        return np.asarray(np.abs(totals[..., :BINS]).sum(axis=-1) / totals[..., BINS])


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


def _answers(outcomes: Outcomes) -> tuple[Groups, Groups, int]:
    """Return target and answer of each example, and the number of classes."""
    scores, target = outcomes["score"], outcomes["target"].astype(np.intp)
    if scores.ndim != 2 or target.min() < 0 or target.max() >= scores.shape[1]:
        raise TaskError(f"scores {scores.shape} do not fit targets from {target.min()} to {target.max()}")
    return target, np.argmax(scores, axis=1), scores.shape[1]


def _sums(weights: Floats, labels: Groups, classes: int) -> Floats:
    """Return the weight of each class in each row of weights, [rows, classes]."""
    return np.stack([np.bincount(labels, row, classes) for row in weights])


def _mean_of(above: Floats, below: Floats) -> Floats:
    """Return the mean over classes of above / below, classes with nothing below left out."""
    known = below > 0
    return np.asarray((above / np.where(known, below, 1.0) * known).sum(axis=-1) / known.sum(axis=-1))
