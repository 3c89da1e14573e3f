"""Ranking columns against a walk over each ranking, and rank correlation against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lessen.metrics import Outcomes, find_metric
from lessen.metrics.correlation import Spearman
from lessen.metrics.retrieval import MRR, NDCG, Recall, ranked


def walked(scores, grades, k):
    """One query, by hand: (recall@k, ndcg@k, reciprocal rank)."""
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    gains = [grades[n] for n in order]
    gain = sum(g / math.log2(r + 2) for r, g in enumerate(gains[:k]))
    best = sum(g / math.log2(r + 2) for r, g in enumerate(sorted(grades, reverse=True)[:k]))
    first = next(r for r, g in enumerate(gains, 1) if g > 0)
    return sum(g > 0 for g in gains[:k]) / sum(g > 0 for g in grades), gain / best, 1 / first


def test_columns_equal_a_walk_over_each_ranking_ties_included():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 6, (40, 25)).astype(np.float32)
    grades = draw.integers(0, 4, (40, 25)) * (draw.random((40, 25)) < 0.2)
    grades[:, 3] = 1
    columns = ranked(scores, grades, recalls=(5,), depths=(5,))
    for row in range(40):
        wanted = walked(scores[row].tolist(), grades[row].tolist(), 5)
        assert [columns[n][row] for n in ("recall@5", "ndcg@5", "mrr")] == pytest.approx(wanted, rel=1e-12)


def test_a_perfect_ranking_scores_one_and_metrics_are_means_of_queries():
    grades = np.array([[0, 2, 1], [1, 0, 0]])
    outcomes = Outcomes(ranked(grades.astype(float), grades, recalls=(2,), depths=(3,)))
    assert [metric(outcomes) for metric in (Recall(2), NDCG(3), MRR())] == [1.0, 1.0, 1.0]
    assert NDCG(3).weighted(Outcomes({"ndcg@3": np.array([0.5, 1.0])}), np.array([[3.0, 1.0]])) == pytest.approx(
        [0.625]
    )
    assert find_metric("recall@10").reads == ("recall@10",)
    assert find_metric("ndcg@10").title == "nDCG@10"


def ranks(values):
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def test_spearman_is_the_correlation_of_ranks():
    draw = np.random.default_rng(1)
    score, target = draw.integers(0, 9, 50).astype(float), draw.integers(0, 9, 50).astype(float)
    wanted = np.corrcoef(ranks(score), ranks(target))[0, 1]
    assert Spearman()(score, target) == pytest.approx(wanted, abs=1e-12)
    assert Spearman()(score, np.exp(score)) == pytest.approx(1.0)


def test_a_weight_of_two_is_a_unit_twice():
    draw = np.random.default_rng(2)
    score, target, counts = draw.random(20), draw.random(20), draw.integers(0, 4, 20)
    weighted = Spearman().weighted(Outcomes({"score": score, "target": target}), counts[None].astype(float))
    assert weighted[0] == pytest.approx(Spearman()(np.repeat(score, counts), np.repeat(target, counts)), abs=1e-12)


def test_mean_average_precision_equals_scikit_learn():
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference implementation")
    generator = np.random.default_rng(4)
    scores, grades = generator.normal(size=(12, 40)), generator.integers(0, 2, (12, 40))
    grades[:, 0] = 1
    found = ranked(scores, grades)["map"]
    expected = [reference.average_precision_score(row > 0, score) for row, score in zip(grades, scores, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert find_metric("map")(Outcomes({"map": found})) == pytest.approx(np.mean(expected))
