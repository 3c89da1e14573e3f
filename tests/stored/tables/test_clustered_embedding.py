from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.clustered_embedding import ClusteredEmbedding
from lessen.stored.tables.embedding import TableShape


def made(rows=60, chunks=2, clusters=5, padding=None):
    table = ClusteredEmbedding(TableShape(rows, 6, padding), chunks, clusters)
    table.reset(0.1, torch.Generator().manual_seed(0))
    return table


def test_a_row_is_the_sum_of_its_centres_and_corrections():
    table = made(padding=0)
    ids = torch.tensor([7, 59], dtype=torch.int32)
    rows = table.correction_rows(ids)
    assert 0 <= int(rows.min()) <= int(rows.max()) < 5
    for place, number in enumerate(ids.tolist()):
        parts = [
            table.centres.weight[5 * c + int(table.codes[number, c])]
            + table.corrections.weight[5 * c + int(rows[place, c])]
            for c in range(2)
        ]
        assert torch.allclose(table(ids)[place], torch.cat(parts))
    assert not bool(table(torch.tensor([0])).any())
    assert table(ids[:0]).shape == (0, 6)


def test_start_has_the_deviation_asked_for_and_gradients_reach_both_tables():
    table = made(4000, clusters=200)
    assert float(table.dequantise().std()) == pytest.approx(0.1, rel=0.1)
    table(torch.arange(9)).sum().backward()
    assert bool(table.centres.weight.grad.any())
    assert bool(table.corrections.weight.grad.any())


@pytest.mark.parametrize("change", [{"chunks": 4}, {"chunks": 0}, {"clusters": 257}, {"clusters": "5"}])
def test_senseless_configurations_are_refused(change):
    with pytest.raises((ValueError, TypeError)):
        ClusteredEmbedding.from_config({**made().config(), **change})
