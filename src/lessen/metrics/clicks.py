"""Metrics of click models: AUC, log loss, AUC inside groups, relative information gain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lessen.errors import TaskError
from lessen.metrics.base import Array, Floats, MeanMetric, Metric, binary, weighed


class AreaUnderCurve(Metric):
    """Area under the ROC curve, ties counted half; equal to scikit-learn's `roc_auc_score`."""

    name = "auc"

    def weighted(self, scores: Array, targets: Array, weights: Floats) -> Floats:
        """Return the AUC under each weighting.

        Raises:
            TaskError: the targets hold one class only, so that no AUC exists.
        """
        flat, labels = binary(scores, targets)
        weights = weighed(targets, weights)
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
        flat, labels = binary(scores, targets, need_both=False)
        loss: Floats = np.logaddexp(0.0, flat) - labels * flat
        return loss

    def weighted(self, scores: Array, targets: Array, weights: Floats) -> Floats:
        """Return the weighted mean of the losses."""
        return super().weighted(scores, targets, weighed(targets, weights))


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
        flat, labels = binary(scores, targets)
        if len(self.groups) != len(flat):
            raise TaskError(f"{len(self.groups)} groups for {len(flat)} scores: gAUC needs one group an example")
        weights = weighed(targets, weights)
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
        labels = binary(scores, targets)[1]
        own = weighed(targets, weights)
        rate = own @ labels / own.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
            return np.asarray(1.0 - LOGLOSS.weighted(scores, targets, weights) / entropy)


LOGLOSS = LogLoss()
