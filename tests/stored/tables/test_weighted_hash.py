from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.partly_exact import Places
from lessen.stored.tables.weighted_hash import WeightedHashEmbedding

SEGMENTS = [["a", 1, 5], ["b", 6, 600], ["c", 606, 200]]


def made(rows=(30, 10), slots=(600, 40), hashes=2):
    table = WeightedHashEmbedding(TableShape(806, 4, 0, segments=SEGMENTS), [0, 1], list(rows), list(slots), hashes)
    table.reset(0.1, torch.Generator().manual_seed(0))
    return table


def test_a_vector_is_the_weighted_sum_of_its_rows():
    table = made()
    ids = torch.tensor([6, 605, 606, 805])
    places = Places(torch.tensor([2, 2, 3, 3]), torch.tensor([0, 599, 0, 199]), torch.tensor([0, 599, 600, 799]))
    rows, slot = table.places(places)
    assert bool((rows[:2] < 30).all())
    assert bool(((rows[2:] >= 30) & (rows[2:] < 40)).all())
    assert slot[:2].tolist() == [0, 599]  # as many slots as ids: no hash
    assert bool(((slot[2:] >= 600) & (slot[2:] < 640)).all())
    expected = (table.weights.weight[slot].unsqueeze(-1) * table.table.weight[rows]).sum(dim=1)
    assert torch.allclose(table(ids), expected)
    assert torch.equal(table(torch.tensor([1, 5])), table.exact.weight[[1, 5]])
    assert not bool(table(torch.tensor([0])).any())


def test_the_start_has_the_deviation_asked_for_and_gradients_reach_rows_and_weights():
    table = made((300, 100), (600, 200), hashes=3)
    assert float(table.dequantise()[6:].std()) == pytest.approx(0.1, rel=0.15)
    table(torch.arange(6, 30)).sum().backward()
    assert bool(table.table.weight.grad.any())
    assert bool(table.weights.weight.grad.any())


@pytest.mark.parametrize("change", [{"rows": [30]}, {"rows": [0, 3]}, {"slots": [601, 4]}, {"hashes": 0}, {"slots": 3}])
def test_senseless_configurations_are_refused(change):
    with pytest.raises((ValueError, TypeError)):
        WeightedHashEmbedding.from_config({**made().config(), **change})
