"""A class that must not be missed: losses that weigh it, and what is missed and falsely found of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def chance(scores: Tensor, protected: int) -> Tensor:
    """Return the probability of the protected class, float32 [rows]: of logits [rows] (class 1), or [rows, classes]."""
    scores = scores.float()
    if scores.dim() == 1 or scores.shape[1] == 1:
        found = torch.sigmoid(scores.reshape(-1))
        return found if protected == 1 else 1.0 - found
    return scores.softmax(dim=1)[:, protected]


def weighted_loss(scores: Tensor, labels: Tensor, protected: int, weight: float) -> Tensor:
    """Return the mean cross-entropy in which a row of the protected class counts `weight` times."""
    ours = labels.reshape(-1) == protected
    factors = torch.where(ours, weight, 1.0)
    if scores.dim() == 1 or scores.shape[1] == 1:
        each = functional.binary_cross_entropy_with_logits(
            scores.reshape(-1).float(), labels.reshape(-1).float(), reduction="none"
        )
    else:
        each = functional.cross_entropy(scores.float(), labels.long(), reduction="none")
    return (each * factors).sum() / factors.sum()


def rank_term(chances: Tensor, ours: Tensor) -> Tensor:
    """Return sum over the class of min(p - M, 0)^2 / (its rows + 1), M the highest chance of any other row.

    It is 0 where every row of the class lies above every other; M has no gradient, so that only those below it move.

    Args:
        chances: float [rows], probabilities and not logits.
        ours: bool [rows].
    """
    others = chances[~ours]
    if not len(others):
        return chances.sum() * 0.0
    return (chances[ours] - others.detach().max()).clamp(max=0.0).square().sum() / (int(ours.sum()) + 1)


@dataclass(frozen=True)
class Missed:
    """What a model does to a class: rows of it, those that are missed, and others that are taken for it."""

    ours: int
    false_negatives: int
    false_positives: int

    @classmethod
    def count(cls, chances: Tensor, ours: Tensor, threshold: float = 0.5) -> Missed:
        """Count at a threshold of the class's probability."""
        taken = chances >= threshold
        return cls(int(ours.sum()), int((ours & ~taken).sum()), int((~ours & taken).sum()))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share that is missed (Wilson)."""
        if not self.ours:
            return 0.0, 1.0
        z, n, share = 1.96, self.ours, self.false_negatives / self.ours
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)


def area(chances: Tensor, ours: Tensor) -> float:
    """Return the area under the curve: how often a row of the class lies above another row, halves for equals."""
    above, below = chances[ours].double(), chances[~ours].double().sort().values
    if not len(above) or not len(below):
        return 0.5
    lower = torch.searchsorted(below, above)
    upper = torch.searchsorted(below, above, right=True)
    return float((lower + upper).double().mean() / (2 * len(below)))


def threshold_for(chances: Tensor, ours: Tensor, false_positives: int) -> float:
    """Return the lowest threshold at which no more than so many other rows are taken for the class.

    Args:
        chances: of the protected class, float [rows], from 0 to 1.
        ours: which rows are of that class, bool [rows].
        false_positives: rows of other classes that may lie above the threshold.
    """
    others = chances[~ours].sort(descending=True).values
    if false_positives >= len(others):
        return 0.0
    return float(torch.nextafter(others[false_positives], torch.tensor(2.0)))
