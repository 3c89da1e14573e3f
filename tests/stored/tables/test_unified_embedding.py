from __future__ import annotations

import pytest
import torch

from lessen.stored.fields import Segment
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.unified_embedding import UnifiedEmbedding

FIELDS = (Segment("user", 1, 500), Segment("item", 501, 500), Segment("day", 1001, 7))


def made(rows=64, chunks=2, exact=(0, 3), seed=0, fields=FIELDS):
    table = UnifiedEmbedding(TableShape(1008, 6, segments=fields), list(exact), rows, chunks)
    table.reset(0.1, torch.Generator().manual_seed(seed))
    return table


def test_rows_are_salted_by_field_and_chunk():
    table = made(1000)
    user, item = (table.rows_of(torch.full((500,), field), torch.arange(500)) for field in (1, 2))
    assert float((user == item).all(1).float().mean()) < 0.01
    assert float((user[:, 0] == user[:, 1]).float().mean()) < 0.02
    day = table(torch.arange(1001, 1008))
    assert torch.equal(day, table.exact.weight[1:])


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_bytes_do_not_depend_on_the_vocabulary_and_width_is_kept(chunks):
    table = made(chunks=chunks)
    assert table.memory.weight.shape == (64, 6 // chunks)
    assert table.exact.weight.shape == (8, 6)
    assert table(torch.arange(1008)).shape == (1008, 6)


def test_each_field_spreads_evenly_over_the_memory():
    table = made(rows=50, chunks=1, exact=(0, 3))
    rows = table.rows_of(torch.full((500,), 2), torch.arange(500))
    counts = torch.bincount(rows[:, 0], minlength=50).float()
    assert float(((counts - 10) ** 2 / 10).sum()) < 50 + 6 * 10


def test_an_injective_hash_is_a_plain_table():
    table = UnifiedEmbedding(TableShape(40, 4), [], 40, 1)
    table.reset(0.1, torch.Generator().manual_seed(0))
    table.salts.copy_(torch.tensor([2**31 // 40 + 1, 0]))  # x -> x * 2^31 / 40 -> x
    ids = torch.randint(0, 40, (9,))
    assert torch.equal(table(ids), table.memory.weight[ids])
    table(ids).sum().backward()
    expected = torch.bincount(ids, minlength=40).float().unsqueeze(1).expand(40, 4)
    assert torch.equal(table.memory.weight.grad, expected)


def test_gradient_of_a_shared_row_is_the_sum_over_fields():
    table = made(rows=1, chunks=1, exact=(0, 3))
    table(torch.tensor([5, 700])).sum().backward()
    assert table.memory.weight.grad.tolist() == [[2.0] * 6]


def test_state_carries_the_hash_and_senseless_configurations_are_refused():
    table = made()
    twin = UnifiedEmbedding.from_config(table.config())
    twin.load_state_dict(table.state_dict())
    assert torch.equal(twin.dequantise(), table.dequantise())
    for change in (
        {"chunks": 4},
        {"chunks": 0},
        {"memory_rows": -1},
        {"exact_blocks": [9]},
        {"exact_blocks": "all"},
        {"exact_blocks": [1, 1]},
    ):
        with pytest.raises((ValueError, TypeError)):
            UnifiedEmbedding.from_config({**table.config(), **change})
