"""Metrics of click models: AUC, log loss, AUC inside groups, relative information gain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lessen.errors import TaskError
from lessen.metrics.base import RULE, Floats, Groups, MeanMetric, Metric, SumMetric, clicks, own_weights
from lessen.metrics.outcomes import Array, Outcomes


class AreaUnderCurve(Metric):
    """Area under the ROC curve, ties counted half; equal to scikit-learn's `roc_auc_score`."""

    name, title = "auc", "AUC"

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return the AUC under each weighting.

        Raises:
            TaskError: the targets hold one class only, so that no AUC exists.
        """
        flat, labels = clicks(outcomes)
        weights = own_weights(outcomes, weights)
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        starts = _starts(ordered)
        positive = labels[order]
        result = np.empty(len(weights))
        for row, weight in enumerate(weights):
            result[row] = _auc_of_runs(weight[order], positive, starts)
        return result

    def left_out(self, outcomes: Outcomes, groups: Groups, count: int) -> Floats:
        """Return the AUC without each group, from one sort: all pairs less those that the group takes part in."""
        flat, labels = clicks(outcomes)
        own = own_weights(outcomes, np.ones((1, len(flat))))[0]
        hit, miss = own * labels, own * (1.0 - labels)
        beaten, beating = _pairs(flat, hit, miss)
        area, hits, misses = _within(flat, hit, miss, groups, count)
        lost = np.bincount(groups, hit * beaten + miss * beating, count) - area
        left = (hit.sum() - hits) * (miss.sum() - misses)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(left > 0, (hit @ beaten - lost) / left, np.nan)

    def chance(self, outcomes: Outcomes) -> float:  # noqa: ARG002 - the same for all data
        """Return 0.5, the AUC of one score for all."""
        return 0.5

    def resolution(self, outcomes: Outcomes) -> float:
        """Return 3 / n, n the size of the smaller class."""
        labels = clicks(outcomes, need_both=False)[1]
        positive = int(labels.sum())
        return RULE / max(1, min(positive, len(labels) - positive))


def _auc_of_runs(weight: Floats, positive: Floats, starts: NDArray[np.intp]) -> float:
    hit = np.add.reduceat(weight * positive, starts)
    miss = np.add.reduceat(weight * (1.0 - positive), starts)
    below = np.cumsum(miss) - miss
    total = hit.sum() * miss.sum()
    return float((hit * (below + 0.5 * miss)).sum() / total) if total > 0 else float("nan")


def _pairs(flat: Floats, hit: Floats, miss: Floats) -> tuple[Floats, Floats]:
    """Return for each example the weight of negatives below its score and of positives above it, ties half."""
    order = np.argsort(flat, kind="stable")
    starts = _starts(flat[order])
    hits, misses = np.add.reduceat(hit[order], starts), np.add.reduceat(miss[order], starts)
    below, above = np.cumsum(misses) - 0.5 * misses, hit.sum() - np.cumsum(hits) + 0.5 * hits
    run = np.empty(len(flat), np.intp)
    run[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(flat)]))
    return below[run], above[run]


def _within(flat: Floats, hit: Floats, miss: Floats, groups: Groups, count: int) -> tuple[Floats, Floats, Floats]:
    """Return for each group the weight of its own pairs in the right order, ties half, of its positives and negatives.

    Every group holds an example.
    """
    order = np.lexsort((flat, groups))
    starts, first = _runs(flat[order], groups[order])
    area = _areas(hit[order], miss[order], starts, first)
    return area, np.bincount(groups, hit, count).astype(np.float64), np.bincount(groups, miss, count).astype(np.float64)


def _starts(ordered: Floats) -> Groups:
    """Return the first index of each run of equal scores: ties share one step of the curve."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def _runs(ordered: Floats, group: Array) -> tuple[Groups, Groups]:
    """Return the start of each run of equal scores inside one group, and the first run of each group."""
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]) | (group[1:] != group[:-1])])
    return starts, np.flatnonzero(np.r_[True, group[starts][1:] != group[starts][:-1]])


def _areas(hit: Floats, miss: Floats, starts: Groups, first: Groups) -> Floats:
    """Return for each group the weight of pairs whose positive has the higher score, ties half."""
    hit, miss = np.add.reduceat(hit, starts), np.add.reduceat(miss, starts)
    before = np.cumsum(miss) - miss
    below = before - np.repeat(before[first], np.diff(np.r_[first, len(starts)]))
    return np.add.reduceat(hit * (below + 0.5 * miss), first)


class LogLoss(MeanMetric):
    """Mean negative log likelihood of binary labels given logits, in nats."""

    name, title, unit = "logloss", "log loss", "nats"
    higher_is_better = False

    def each(self, outcomes: Outcomes) -> Floats:
        """Return softplus(-z) for positives and softplus(z) for negatives."""
        flat, labels = clicks(outcomes, need_both=False)
        loss: Floats = np.logaddexp(0.0, flat) - labels * flat
        return loss

    def chance(self, outcomes: Outcomes) -> float:
        """Return the entropy of the share of positives, in nats."""
        own = own_weights(outcomes, np.ones((1, len(outcomes))))[0]
        return float(_entropy(np.asarray(np.average(clicks(outcomes, need_both=False)[1], weights=own))))


class GroupAreaUnderCurve(Metric):
    """gAUC: AUC inside each group (a user, a query), averaged with the group's examples as weight.

    Groups with one class only are left out, as in DIN (arXiv 1706.06978) and FuxiCTR.
    """

    name, title = "gauc", "gAUC"
    reads = ("score", "target", "group")

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return the gAUC under each weighting.

        Raises:
            TaskError: the outcomes have no group, or no group has both classes.
        """
        flat, labels = clicks(outcomes)
        groups = outcomes["group"]
        weights = own_weights(outcomes, weights)
        order = np.lexsort((flat, groups))
        starts, first = _runs(flat[order], groups[order])
        values = [_grouped_auc(weight[order], labels[order], starts, first) for weight in weights]
        if np.isnan(values).all():
            raise TaskError("gAUC needs a group with both classes; every group holds one class only")
        return np.array(values)

    def chance(self, outcomes: Outcomes) -> float:  # noqa: ARG002 - the same for all data
        """Return 0.5, the AUC of one score for all in every group."""
        return 0.5


def _grouped_auc(weight: Floats, positive: Floats, starts: Groups, first: Groups) -> float:
    hit, miss = weight * positive, weight * (1.0 - positive)
    area = _areas(hit, miss, starts, first)
    hits, misses = np.add.reduceat(hit, starts[first]), np.add.reduceat(miss, starts[first])
    usable = (hits > 0) & (misses > 0)
    if not usable.any():
        return float("nan")
    share = (hits + misses)[usable]
    return float((area[usable] / (hits * misses)[usable] * share).sum() / share.sum())


class RelativeInformationGain(SumMetric):
    """1 - log loss / entropy of the share of positives: 0 says no better than that share, 1 is perfect."""

    name, title = "rig", "relative information gain"

    def sums(self, outcomes: Outcomes) -> Floats:
        """Return loss, label and one of each example. Raises TaskError where the labels hold one class only."""
        labels = clicks(outcomes)[1]
        return np.stack([LOGLOSS.each(outcomes), labels, np.ones(len(labels))], axis=1)

    def of_sums(self, totals: Floats) -> Floats:
        """Return the gain."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1.0 - totals[..., 0] / totals[..., 2] / _entropy(totals[..., 1] / totals[..., 2]))

    def chance(self, outcomes: Outcomes) -> float:  # noqa: ARG002 - the same for all data
        """Return 0, the gain of the share of positives itself."""
        return 0.0


def _entropy(rate: Floats) -> Floats:
    """Return the entropy of a share in nats; 0 where it is 0 or 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return np.where((rate == 0.0) | (rate == 1.0), 0.0, found)


LOGLOSS = LogLoss()
