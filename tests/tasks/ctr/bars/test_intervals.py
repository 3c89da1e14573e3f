from __future__ import annotations

import numpy as np
import pytest

from lessen.errors import TaskError
from lessen.metrics import AUC, LOGLOSS, Outcomes, bootstrap_weights
from lessen.tasks.ctr.bars.intervals import auc_interval, auc_variance, logloss_interval


def _draw(rows: int, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < 0.3).astype(np.float32)
    return np.round(generator.normal(labels, 1.0), 1), labels  # rounded: many ties


def test_variance_is_that_of_the_pairwise_definition() -> None:
    scores, labels = _draw(60)
    above, below = scores[labels == 1], scores[labels == 0]
    wins = (above[:, None] > below[None]) + 0.5 * (above[:, None] == below[None])
    first, second = wins.mean(axis=1), wins.mean(axis=0)
    expected = first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)
    assert auc_variance(scores, labels) == pytest.approx(expected, rel=1e-12)


def test_intervals_agree_with_the_bootstrap() -> None:
    scores, labels = _draw(3000)
    weights = bootstrap_weights(len(labels), 1000)
    for metric, (low, high) in ((AUC, auc_interval(scores, labels)), (LOGLOSS, logloss_interval(scores, labels))):
        ends = np.quantile(metric.weighted(Outcomes({"score": scores, "target": labels}), weights), (0.025, 0.975))
        assert (high - low) == pytest.approx(ends[1] - ends[0], rel=0.12)
        assert low < metric(scores, labels) < high


def test_coverage_is_about_95_percent() -> None:
    """The AUC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2)."""
    truth, inside = 0.7602499389065233, 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        labels = (generator.random(400) < 0.3).astype(np.float32)
        low, high = auc_interval(generator.normal(labels, 1.0), labels)
        inside += low <= truth <= high
    assert 0.91 <= inside / 300 <= 0.985


def test_one_class_has_no_interval() -> None:
    with pytest.raises(TaskError, match="two examples of each class"):
        auc_interval(np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.0, 0.0]))
