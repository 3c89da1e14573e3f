"""Tables that compute vectors: blocks of one array, tensor trains; and the rows they keep exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lessen.stored.fields import Segment
from lessen.stored.tables.block_hashed import BlockHashedEmbedding
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.tensor_train import TensorTrainEmbedding, balanced

FIELDS = (Segment("a", 1, 300), Segment("b", 301, 9), Segment("c", 310, 200))


def robe(size=500, block=8, exact=(0, 2), dim=8):
    table = BlockHashedEmbedding(TableShape(510, dim, segments=FIELDS), list(exact), size, block)
    table.reset(0.1, torch.Generator().manual_seed(0))
    return table


def train(rank=4, dim=16, exact=(0, 2)):
    table = TensorTrainEmbedding(TableShape(510, dim, segments=FIELDS), list(exact), rank)
    table.reset(0.1, torch.Generator().manual_seed(0))
    return table


@pytest.mark.parametrize("table", [robe(), train()])
def test_small_fields_keep_rows_of_their_own(table):
    assert table.exact.weight.shape[0] == 10
    found = table(torch.arange(301, 310))
    assert torch.equal(found, table.exact.weight[1:])
    assert torch.equal(table(torch.tensor([[0]]))[0, 0], table.exact.weight[0])


@pytest.mark.parametrize("block", [1, 2, 4, 8])
def test_blocks_are_contiguous_inside_the_array_and_both_paths_agree(block):
    table = robe(size=100, block=block)
    starts = table.starts_of(torch.arange(500))
    assert starts.shape == (500, 8 // block)
    assert 0 <= int(starts.min()) <= int(starts.max()) <= 100 - block
    ids = torch.randint(0, 510, (7, 3), dtype=torch.int32)
    with torch.no_grad():
        fast = table(ids)
    assert torch.equal(fast, table(ids).detach())
    expected = torch.stack([table.memory[s : s + block] for s in starts[4].tolist()]).flatten()
    assert torch.equal(table(torch.tensor([5])).flatten(), expected)


def test_gradients_scatter_into_the_array():
    table = robe(size=50)
    table(torch.tensor([5, 6, 5])).sum().backward()
    expected = torch.zeros(50)
    for compact in (4, 5, 4):
        start = int(table.starts_of(torch.tensor([compact]))[0, 0])
        expected[start : start + 8] += 1
    assert torch.equal(table.memory.grad, expected)


def test_hashed_starts_are_even_and_large_ids_stay_in_range():
    table = robe(size=400, block=1, dim=1, exact=())
    counts = torch.bincount(table.starts_of(torch.arange(200_000))[:, 0], minlength=400).float()
    assert float(((counts - 500) ** 2 / 500).sum()) < 400 + 6 * 800**0.5
    huge = table.starts_of(torch.tensor([2**31 - 1, 2**31, 2**40]))
    assert 0 <= int(huge.min()) <= int(huge.max()) < 400


@pytest.mark.parametrize("number", [1, 2, 7, 10, 16, 64, 1000, 999_983])
def test_factors_cover_the_number_and_are_balanced(number):
    factors = balanced(number)
    assert np.prod(factors) >= number
    assert np.prod(factors) < number + max(factors) * max(factors)


@pytest.mark.parametrize("dim", [10, 16])
def test_rows_equal_the_full_contraction_of_the_cores(dim):
    table = train(rank=3, dim=dim)
    (p1, p2, p3), (q1, q2, q3) = table.digits, table.parts
    first = table.first.weight.detach().view(p1, q1, 3)
    middle = table.middle.weight.detach().view(p2, 3, q2, 3)
    last = table.last.weight.detach().view(p3, 3, q3)
    full = torch.einsum("aur,brvs,csw->abcuvw", first, middle, last).reshape(p1 * p2 * p3, -1)
    assert torch.allclose(table.rows(torch.arange(500)), full[:500, :dim], atol=1e-6)
    size = sum(core.weight.numel() for core in (table.first, table.middle, table.last))
    assert size == p1 * q1 * 3 + p2 * q2 * 9 + p3 * q3 * 3


def test_cores_start_with_the_deviation_asked_for():
    for rank in (1, 4, 16):
        table = train(rank)
        assert float(table.rows(torch.arange(500)).detach().std()) == pytest.approx(0.1, rel=0.1)


def test_repeated_ids_share_their_computation_and_gradients_reach_all_cores():
    table = train()
    ids = torch.tensor([[7, 7, 400], [7, 305, 0]])
    found = table(ids)
    assert torch.equal(found[0, 0], found[1, 0])
    found.sum().backward()
    for core in (table.first, table.middle, table.last, table.exact):
        assert bool(core.weight.grad.any())


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (robe, {"size": 3}),
        (robe, {"size": 2**60}),
        (robe, {"block": 3}),
        (robe, {"exact_blocks": [7]}),
        (train, {"rank": 0}),
        (train, {"rank": 2.0}),
        (train, {"exact_blocks": None}),
    ],
)
def test_senseless_configurations_are_refused(kind, change):
    table = kind()
    with pytest.raises((ValueError, TypeError)):
        type(table).from_config({**table.config(), **change})
