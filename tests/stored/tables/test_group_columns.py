from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.group_columns import GroupColumnsEmbedding


def test_rows_equal_the_masked_table():
    weight, group, columns = torch.randn(70, 5), torch.randint(0, 7, (70,)), torch.rand(7, 5) < 0.5
    columns[3] = False
    made = GroupColumnsEmbedding.from_dense(TableShape(70, 5), weight, group, columns)
    expected = weight * columns[group]
    assert torch.equal(made.dequantise(), expected)
    ids = torch.randint(0, 70, (3, 4), dtype=torch.int32)
    assert torch.equal(made(ids), expected[ids.long()])
    assert made(ids[:0]).shape == (0, 4, 5)
    kept = int(columns[group].sum())
    assert sum(b.numel() * b.element_size() for b in made.buffers()) == 4 * kept + 16 * 5 + 7 * 5
    twin = GroupColumnsEmbedding.from_config(made.config())
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin.dequantise(), expected)


def test_a_table_without_columns_gives_zeros_and_nonsense_is_refused():
    none = torch.zeros(2, 3, dtype=torch.bool)
    group = torch.zeros(4, dtype=torch.int64)
    made = GroupColumnsEmbedding.from_dense(TableShape(4, 3), torch.randn(4, 3), group, none)
    assert not bool(made.dequantise().any())
    for kinds, kept in ((0, 1), (17, 1), (2, 13), (2, -1)):
        with pytest.raises(ValueError, match="kinds|kept"):
            GroupColumnsEmbedding(TableShape(4, 3), kinds, kept)
