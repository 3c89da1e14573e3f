"""Metrics of click models: AUC, log loss, AUC inside groups, relative information gain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lessen.errors import TaskError
from lessen.metrics.base import RULE, Floats, MeanMetric, Metric, clicks, own_weights
from lessen.metrics.outcomes import Outcomes


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
        # first index of each run of equal scores: ties share one step of the curve
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        positive = labels[order]
        result = np.empty(len(weights))
        for row, weight in enumerate(weights):
            result[row] = _auc_of_runs(weight[order], positive, starts)
        return result

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
        return float(_entropy(_rate(outcomes, np.ones((1, len(outcomes)))))[0])


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
        group, ordered = groups[order], flat[order]
        # a run is equal scores inside one group; `first` is the first run of each group
        starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]) | (group[1:] != group[:-1])])
        first = np.flatnonzero(np.r_[True, group[starts][1:] != group[starts][:-1]])
        values = [_grouped_auc(weight[order], labels[order], starts, first) for weight in weights]
        if np.isnan(values).all():
            raise TaskError("gAUC needs a group with both classes; every group holds one class only")
        return np.array(values)

    def chance(self, outcomes: Outcomes) -> float:  # noqa: ARG002 - the same for all data
        """Return 0.5, the AUC of one score for all in every group."""
        return 0.5


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

    name, title = "rig", "relative information gain"

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return the gain under each weighting. Raises TaskError where the targets hold one class only."""
        clicks(outcomes)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1.0 - LOGLOSS.weighted(outcomes, weights) / _entropy(_rate(outcomes, weights)))

    def chance(self, outcomes: Outcomes) -> float:  # noqa: ARG002 - the same for all data
        """Return 0, the gain of the share of positives itself."""
        return 0.0


def _rate(outcomes: Outcomes, weights: Floats) -> Floats:
    """Return the share of positives under each weighting."""
    own = own_weights(outcomes, weights)
    return np.asarray(own @ clicks(outcomes, need_both=False)[1] / own.sum(axis=1))


def _entropy(rate: Floats) -> Floats:
    """Return the entropy of a share in nats; 0 where it is 0 or 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return np.where((rate == 0.0) | (rate == 1.0), 0.0, found)


LOGLOSS = LogLoss()
