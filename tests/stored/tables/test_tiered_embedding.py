from __future__ import annotations

import copy

import pytest
import torch

from lessen.stored.fields import Segment
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.fallback_embedding import FallbackEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare


def made(mode=None):
    shape = TableShape(10, 3, mode=mode, segments=[("a", 0, 4), ("b", 4, 6)])
    cold = FallbackEmbedding.from_rows(bare(shape), torch.tensor([[1.0] * 3, [2.0] * 3]))
    table = TieredEmbedding(shape, 3, cold)
    table.hot_ids.copy_(torch.tensor([0, 5, 9]))
    with torch.no_grad():
        table.hot.weight.copy_(torch.arange(9.0).view(3, 3) + 10)
    return table


def test_hot_ids_read_their_rows_and_others_the_cold_table():
    table = made()
    assert table.dequantise()[:, 0].tolist() == [10, 1, 1, 1, 2, 13, 2, 2, 2, 16]
    for kind in (torch.int32, torch.int64):
        ids = torch.tensor([[9, 1], [5, 4]], dtype=kind)
        assert table(ids)[..., 0].tolist() == [[16, 1], [13, 2]]
    assert table(torch.zeros(0, dtype=torch.int32)).shape == (0, 3)
    assert table.segments == (Segment("a", 0, 4), Segment("b", 4, 6))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000])
def test_every_id_is_found_at_its_place(rows):
    generator = torch.Generator().manual_seed(rows)
    hot = torch.randperm(rows, generator=generator)[: max(1, rows // 3)].sort().values
    shape = TableShape(rows, 2)
    table = TieredEmbedding(shape, len(hot), FallbackEmbedding(bare(shape)))
    table.fill_hot(hot, torch.randn(len(hot), 2))
    found, place = table._find(torch.arange(rows))
    assert found.nonzero()[:, 0].tolist() == hot.tolist()
    assert place[found].tolist() == list(range(len(hot)))
    assert table.packed_bytes() == 12 * -(-rows // 64)
    other = torch.arange(len(hot))
    table.fill_hot(other, torch.zeros(len(hot), 2))
    assert table._find(torch.arange(rows))[0].sum() == len(hot)
    assert bool(table._find(other)[0].all())
    assert copy.deepcopy(table).packed_bytes() == 0
    with pytest.raises(IndexError):
        table(torch.tensor([64 * rows]))


def test_bags_and_twin():
    table = made("mean")
    assert table(torch.tensor([[0, 1], [4, 9]]))[:, 0].tolist() == [5.5, 9.0]
    twin = TieredEmbedding.from_config(table.config())
    twin.load_state_dict(table.state_dict())
    assert torch.equal(twin.dequantise(), table.dequantise())


@pytest.mark.parametrize(
    "cold",
    [
        None,
        3,
        {"kind": "tiered-embedding", "config": {}},
        {"kind": "no-such", "config": {}},
        {"kind": "int8-linear", "config": {"in_features": 3, "out_features": 3}},
        {"kind": "fallback-embedding"},
    ],
)
def test_a_cold_table_that_is_none_is_refused(cold):
    with pytest.raises((ValueError, TypeError), match="cold|kind"):
        TieredEmbedding.from_config({**made().config(), "cold": cold})


def test_a_cold_table_of_other_size_is_refused():
    config = made().config()
    config["cold"]["config"]["num_embeddings"] = 11
    with pytest.raises(ValueError, match="all rows"):
        TieredEmbedding.from_config(config)
