"""95 % intervals over the examples of a test set: DeLong's for AUC, the normal one for the mean log loss.

Both take one sort at most, so that four million examples take seconds; a bootstrap of them would take hours.
"""

from __future__ import annotations

import numpy as np

from lessen.errors import TaskError
from lessen.metrics import AUC, LOGLOSS, Array, Floats, Outcomes
from lessen.metrics.intervals import Z


def auc_variance(scores: Array, targets: Array) -> float:
    """Return DeLong's variance of the AUC (Biometrics 44, 1988), by midranks (Sun and Xu, IEEE SPL 21, 2014).

    It is var(V10) / positives + var(V01) / negatives, with V10_i the share of negatives below positive i and V01_j the
    share of positives above negative j, ties half.

    Raises:
        TaskError: there are fewer than two examples of a class.
    """
    flat = np.asarray(scores, dtype=np.float64).reshape(-1)
    positive = np.asarray(targets).reshape(-1) == 1
    count, rest = int(positive.sum()), int((~positive).sum())
    if min(count, rest) < 2:
        raise TaskError(f"an interval of AUC needs two examples of each class; there are {count} and {rest}")
    above, below = flat[positive], flat[~positive]
    hit = (_midranks(flat)[positive] - _midranks(above)) / rest
    miss = 1.0 - (_midranks(flat)[~positive] - _midranks(below)) / count
    return float(hit.var(ddof=1) / count + miss.var(ddof=1) / rest)


def _midranks(values: Floats) -> Floats:
    """Return ranks from 1 on, equal values sharing the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group])


def auc_interval(scores: Array, targets: Array) -> tuple[float, float]:
    """Return the 95 % interval of the AUC over the examples, inside [0, 1]. Raises TaskError as `auc_variance`."""
    value, half = AUC(scores, targets), Z * auc_variance(scores, targets) ** 0.5
    return max(0.0, value - half), min(1.0, value + half)


def logloss_interval(scores: Array, targets: Array) -> tuple[float, float]:
    """Return the 95 % interval of the mean log loss over the examples."""
    each = LOGLOSS.each(Outcomes({"score": scores, "target": targets}))
    half = Z * float(each.std(ddof=1)) / len(each) ** 0.5 if len(each) > 1 else 0.0
    return float(each.mean()) - half, float(each.mean()) + half
