"""Ranges of the least error, against a brute-force grid of ranges."""

from __future__ import annotations

import pytest
import torch

from lessen.stored.tables import rowwise


def error(weight, bits, ranges):
    return (rowwise.unpack(rowwise.pack(weight, bits, ranges), weight.shape[1], bits) - weight).square().sum(1)


def brute(weight, bits, cuts=60):
    """The least error over every range that begins and ends at one of the cuts of minimum to maximum."""
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    best = torch.full((len(weight),), torch.inf)
    for left in range(cuts):
        for right in range(cuts - left):
            step = (high - low) * (1 - (left + right) / cuts) / (2**bits - 1)
            start = low + (high - low) * left / cuts
            codes = ((weight - start) / step).round().clamp(0, 2**bits - 1)
            best = torch.minimum(best, (codes * step + start - weight).square().sum(1))
    return best


def rows(kind, dim):
    draw = torch.Generator().manual_seed(4)
    normal = torch.randn(150, dim, generator=draw)
    if kind == "normal":
        return 0.1 * normal
    if kind == "heavy":
        return normal / torch.rand(150, dim, generator=draw).clamp_min(0.02)
    return 0.1 * normal + 2.0 * (torch.rand(150, dim, generator=draw) > 0.8)


@pytest.mark.parametrize("kind", ["normal", "heavy", "two heaps"])
@pytest.mark.parametrize(("bits", "dim"), [(2, 8), (2, 16), (2, 64), (4, 16), (4, 64)])
def test_the_error_is_within_a_fiftieth_of_brute_force(bits, dim, kind):
    weight = rows(kind, dim)
    least, best = float(error(weight, bits, "least").sum()), float(brute(weight, bits).sum())
    assert least <= 1.02 * best
    if bits == 2 and dim > 8:
        assert float(error(weight, bits, "greedy").sum()) > 1.1 * least  # the published search leaves that much


@pytest.mark.parametrize("bits", [4, 2])
def test_no_row_is_worse_than_with_its_minimum_and_maximum(bits):
    scale = torch.logspace(-7, 4, 300)[:, None]
    weight = torch.randn(300, 10, generator=torch.Generator().manual_seed(1)) * scale
    weight = torch.cat([weight, weight / scale * 1e-4 + 5, torch.zeros(2, 10), torch.full((1, 10), 0.3)])
    weight[5, 0] = 60_000
    plain, least = error(weight, bits, "plain"), error(weight, bits, "least")
    assert (least <= plain * (1 + 1e-4) + 1e-12).all()
    assert torch.equal(rowwise.unpack(rowwise.pack(torch.zeros(3, 5), bits, "least"), 5, bits), torch.zeros(3, 5))


def test_rows_are_searched_on_their_own():
    """Neither the other rows nor how many there are change a row's bytes."""
    weight = torch.randn(5000, 6, generator=torch.Generator().manual_seed(2))
    whole = rowwise.pack(weight, 2, "least")
    assert torch.equal(whole[2040:2060], rowwise.pack(weight[2040:2060], 2, "least"))
