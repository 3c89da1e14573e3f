"""Choose few of many numeric features: one-way ANOVA, then maximal relevance at minimal redundancy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_FLOOR = 1e-6
"""Least mean correlation that relevance is divided by; below it the quotient would only amplify rounding."""


def anova_f(features: NDArray[Any], labels: NDArray[np.int64]) -> Floats:
    """Return the one-way ANOVA F value of each column of `features` [n, p]; -1 for constant columns.

    A column that separates the classes perfectly has no spread inside them; it gets a very large finite value (the
    official code sets it to 0 and so throws the best columns away).
    """
    values = np.round(features.astype(np.float64), 7)
    classes = np.unique(labels)
    grand = values.mean(axis=0)
    between, within = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for label in classes:
        own = values[labels == label]
        mean = own.mean(axis=0)
        between += len(own) * (mean - grand) ** 2
        within += ((own - mean) ** 2).sum(axis=0)
    total = between + within
    constant = values.max(axis=0) == values.min(axis=0)
    freedom = (len(values) - len(classes)) / max(len(classes) - 1, 1)
    score = between / np.maximum(within, 1e-12 * np.maximum(total, 1e-300)) * freedom
    return np.asarray(np.where(constant, -1.0, score))


def top(scores: Floats, count: int) -> NDArray[np.int64]:
    """Return up to `count` columns of largest score, constant ones left out; ties go to the earlier column."""
    order = np.argsort(-scores, kind="stable")[:count]
    return order[scores[order] >= 0]


def mrmr(features: NDArray[Any], relevance: Floats, count: int) -> list[int]:
    """Return `count` columns: first the most relevant, then argmax of relevance / mean |correlation with chosen|."""
    values = features.astype(np.float64)
    spread = values.std(axis=0)
    unit = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    total = np.zeros(len(relevance))
    left = relevance.astype(np.float64).copy()
    chosen: list[int] = []
    while len(chosen) < min(count, len(relevance)):
        quotient = left if not chosen else left / np.maximum(total / len(chosen), _FLOOR)
        best = int(np.argmax(quotient))
        chosen.append(best)
        left[best] = -np.inf
        total += np.abs(unit.T @ unit[:, best]) / len(unit)
    return chosen
