"""Losses and counts of a protected class against loops and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lessen.sparsity.protected import Missed, area, chance, rank_term, threshold_for, weighted_loss


def drawn(rows=200, seed=0):
    torch.manual_seed(seed)
    ours = torch.rand(rows) < 0.2
    return (torch.rand(rows) * 0.6 + 0.3 * ours).double(), ours


def test_the_rank_term_is_that_of_a_loop_and_moves_only_what_lies_too_low():
    chances, ours = drawn()
    chances.requires_grad_()
    highest = max(float(p) for p, mine in zip(chances, ours, strict=True) if not mine)
    expected = sum(min(float(p) - highest, 0.0) ** 2 for p, mine in zip(chances, ours, strict=True) if mine)
    found = rank_term(chances, ours)
    assert float(found.detach()) == pytest.approx(expected / (int(ours.sum()) + 1))
    (slope,) = torch.autograd.grad(found, chances)
    assert bool((slope[~ours] == 0).all())
    assert bool((slope[ours & (chances < highest)] < 0).all())  # downhill is up
    assert bool((slope[ours & (chances >= highest)] == 0).all())
    assert float(rank_term(torch.tensor([0.9, 0.1]), torch.tensor([True, False]))) == 0.0
    assert float(rank_term(torch.tensor([0.9]), torch.tensor([True]))) == 0.0


def test_weight_one_is_the_plain_loss():
    torch.manual_seed(0)
    scores, labels = torch.randn(30, 4), torch.randint(4, (30,))
    assert torch.allclose(weighted_loss(scores, labels, 2, 1.0), functional.cross_entropy(scores, labels))
    one, binary = torch.randn(30), torch.randint(2, (30,)).float()
    plain = functional.binary_cross_entropy_with_logits(one, binary)
    assert torch.allclose(weighted_loss(one, binary, 1, 1.0), plain)
    weights = torch.ones(4)
    weights[2] = 5.0
    assert torch.allclose(weighted_loss(scores, labels, 2, 5.0), functional.cross_entropy(scores, labels, weights))


def test_chances_are_probabilities():
    scores = torch.tensor([[2.0], [-1.0]])
    assert torch.allclose(chance(scores, 1) + chance(scores, 0), torch.ones(2))
    assert torch.allclose(chance(torch.tensor([[0.0, 3.0]]), 1), torch.sigmoid(torch.tensor([3.0])))


def test_counts_area_and_interval_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    chances, ours = drawn()
    chances = (chances * 10).round() / 10  # equals
    missed = Missed.count(chances, ours)
    ((_, false_positives), (false_negatives, _)) = metrics.confusion_matrix(ours, chances >= 0.5)
    assert (missed.false_negatives, missed.false_positives) == (false_negatives, false_positives)
    assert area(chances, ours) == pytest.approx(metrics.roc_auc_score(ours, chances))
    low, high = missed.interval
    assert low < missed.false_negatives / missed.ours < high
    assert Missed(10, 0, 0).interval[0] == 0.0


def test_the_threshold_takes_no_more_others_than_allowed():
    chances, ours = drawn()
    for allowed in (0, 3, 50, 10_000):
        threshold = threshold_for(chances, ours, allowed)
        taken = Missed.count(chances, ours, threshold).false_positives
        assert taken <= allowed
        assert taken == min(allowed, int((~ours).sum()))
