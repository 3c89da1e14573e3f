from __future__ import annotations

import pytest
import torch

from lessen.stored.fields import Segment
from lessen.stored.tables.deep_hash import DeepHashEmbedding
from lessen.stored.tables.embedding import TableShape

FIELDS = (Segment("a", 1, 3000), Segment("b", 3001, 9), Segment("c", 3010, 990))


def made(hashes=24, width=16, layers=2):
    table = DeepHashEmbedding(TableShape(4000, 6, segments=FIELDS), [0, 2], hashes, width, layers)
    table.reset(0.1, torch.Generator().manual_seed(0))
    return table.eval()


def test_encodings_are_uniform_distinct_and_differ_by_field():
    table = made()
    own = torch.arange(900)
    first, third = table.encode(torch.full_like(own, 1), own), table.encode(torch.full_like(own, 3), own)
    assert -1 <= float(first.min()) <= float(first.max()) <= 1
    assert abs(float(first.mean())) < 0.02
    assert float(first.var()) == pytest.approx(1 / 3, rel=0.03)
    assert len(first.unique(dim=0)) == 900
    assert not bool((first == third).all(1).any())
    huge = table.encode(torch.tensor([1, 1]), torch.tensor([2**31 + 5, 2**40]))
    assert bool(huge.isfinite().all())


def test_start_deviation_exact_fields_and_repeated_ids():
    table = made()
    ids = torch.arange(1, 3001)
    table.train()
    assert float(table(ids).detach().std()) == pytest.approx(0.1, rel=0.25)
    table.eval()
    assert torch.equal(table(torch.arange(3001, 3010)), table.exact.weight[1:])
    found = table(torch.tensor([[5, 5], [3500, 5]]))
    assert torch.equal(found[0, 0], found[1, 1])
    assert table(torch.zeros(0, dtype=torch.int32)).shape == (0, 6)


def test_one_example_can_be_trained_on():
    table = made().train()
    table(torch.tensor([7])).sum().backward()
    assert all(module.training for module in table.network)


def test_parameters_follow_the_formula_and_senseless_sizes_are_refused():
    table = made(hashes=24, width=16, layers=2)
    own = sum(p.numel() for p in table.network.parameters())
    assert own == (24 + 1) * 16 + (16 + 1) * 16 + (16 + 1) * 6 + 2 * 2 * 16
    for change in ({"hashes": 0}, {"width": -1}, {"layers": 65}, {"layers": None}):
        with pytest.raises((ValueError, TypeError)):
            DeepHashEmbedding.from_config({**table.config(), **change})
