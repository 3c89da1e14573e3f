"""Which weights stay: counts, order, ties, and patterns that make no sense."""

from __future__ import annotations

import pytest
import torch

from lessen.sparsity.pattern import Pattern, highest


@pytest.mark.parametrize("text", ["1:4", "2:4", "1:8", "1:16", "1:32", "7:8", "8:64"])
def test_every_run_keeps_its_n_largest(text):
    torch.manual_seed(0)
    pattern = Pattern.parse(text)
    scores = torch.rand(6, 128)
    mask = pattern.mask(scores)
    runs, kept = scores.view(-1, pattern.m), mask.view(-1, pattern.m)
    assert bool((kept.sum(1) == pattern.n).all())
    for run, own in zip(runs, kept, strict=True):
        assert set(run[own].tolist()) == set(sorted(run.tolist(), reverse=True)[: pattern.n])


def test_two_of_four_is_what_the_hardware_wants():
    weight = torch.randn(32, 64)
    left = weight * Pattern.parse("2:4").mask(weight.abs())
    assert bool(((left.view(-1, 4) != 0).sum(1) <= 2).all())


@pytest.mark.parametrize("columns", [40, 700])  # sorted, and by the value of the last that stays
@pytest.mark.parametrize("count", [1, 7, 39])
def test_equals_are_settled_by_place(columns, count):
    assert torch.equal(highest(torch.ones(3, columns), count).nonzero()[:count, 1], torch.arange(count))
    scores = torch.randint(0, 4, (5, columns)).float()
    expected = torch.zeros(5, columns, dtype=torch.bool)
    for row in range(5):
        for place in sorted(range(columns), key=lambda p: (-scores[row, p], p))[:count]:
            expected[row, place] = True
    assert torch.equal(highest(scores, count), expected)


def test_a_share_is_of_the_matrix_or_of_each_row():
    scores = torch.arange(40.0).view(4, 10)
    assert Pattern(0.25).mask(scores).sum(1).tolist() == [0, 0, 0, 10]
    assert Pattern(0.25).mask(scores, by_row=True).sum(1).tolist() == [2, 2, 2, 2]
    assert int(Pattern(0.001).mask(scores).sum()) == 1


@pytest.mark.parametrize("text", ["4", "4:4", "0:4", "2:300", "a:b", "2:4:8", "-1:4", ""])
def test_patterns_that_are_none(text):
    with pytest.raises(ValueError, match="N:M"):
        Pattern.parse(text)
