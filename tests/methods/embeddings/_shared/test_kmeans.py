"""Drawing rows by weight: one law below and above what `torch.multinomial` takes."""

from __future__ import annotations

import pytest
import torch

from lessen.methods.embeddings._shared import kmeans


@pytest.mark.parametrize("most", [kmeans.MULTINOMIAL_MOST, 2])
def test_positions_are_different_and_follow_the_weights(most, monkeypatch):
    monkeypatch.setattr(kmeans, "MULTINOMIAL_MOST", most)
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([8.0, 1.0, 1.0, 2.0])
    first = torch.zeros(4)
    for _ in range(4000):
        drawn = kmeans.draw(weights, 2, generator)
        assert len(set(drawn.tolist())) == 2
        first[drawn] += 1
    # inclusion of two of four, in closed form: p_i + sum_j p_j p_i / (1 - p_j)
    p = weights / weights.sum()
    expected = p + torch.stack([sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)])
    assert torch.allclose(first / 4000, expected, atol=0.03)


def test_more_rows_than_multinomial_takes():
    weights = torch.ones(kmeans.MULTINOMIAL_MOST + 8)
    weights[-1] = 1e12
    assert kmeans.MULTINOMIAL_MOST + 7 in kmeans.draw(weights, 3, torch.Generator().manual_seed(1)).tolist()
