"""Pairs of outcomes with a known truth: what suites of the report card must catch, and at what they stay silent."""

from __future__ import annotations

from typing import Any

import numpy as np

from lessen.metrics import ACCURACY, AUC, Outcomes
from lessen.task import Task


class Given(Task):
    """A task whose slices are given and whose outcomes are those that a model carries."""

    name = "given"
    metrics = {"accuracy": ACCURACY}

    def __init__(self, labels: dict[str, dict[str, Any]] | None = None, metrics: Any = None) -> None:
        self.labels = labels or {}
        self.metrics = metrics or type(self).metrics

    def build(self) -> Any:
        raise NotImplementedError

    def batches(self, split: Any, seed: int = 0) -> Any:
        return []

    def slices(self, split: Any) -> Any:
        return self.labels.get(split, {})

    def outcomes(self, model: Any, split: Any = "test") -> Outcomes:
        return model.outcomes


def classes(
    seed: int, n: int, lost: float, gained: float, where: Any = None, count: int = 5, sure: float = 3.0
) -> tuple[Outcomes, Outcomes]:
    """Return a pair of classifiers: a share of right answers goes wrong, and back, where `where` says so."""
    g = np.random.default_rng(seed)
    target = g.integers(0, count, n)
    right = g.random(n) < 0.8
    chance = g.random(n)
    where = np.ones(n, dtype=bool) if where is None else where
    after = np.where(right, ~((chance < lost) & where), (chance < gained) & where)
    noise = g.normal(0, 0.3, (n, count))
    found = []
    for hit, scale in ((right, 3.0), (after, sure)):
        answer = np.where(hit, target, (target + 1) % count)
        scores = noise.copy()
        scores[np.arange(n), answer] += 2.5
        found.append(Outcomes({"score": scores * scale / 3.0, "target": target}))
    return found[0], found[1]


def clicks(seed: int, n: int, noise: Any, scale: float = 1.0) -> tuple[Outcomes, Outcomes]:
    """Return a pair of click models; the compact one errs by `noise` [n] or a number more, or is surer by `scale`."""
    g = np.random.default_rng(seed)
    logit = g.normal(-1.0, 1.5, n)
    label = (g.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    moved = logit * scale + noise * g.normal(0, 1, n)
    return Outcomes({"score": logit, "target": label}), Outcomes({"score": moved, "target": label})


AUC_ONLY = {"auc": AUC}
