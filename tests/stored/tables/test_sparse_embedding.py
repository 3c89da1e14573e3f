from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.sparse_embedding import SparseEmbedding


def test_rows_equal_the_dense_table_with_its_zeros():
    weight = torch.randn(40, 7) * (torch.rand(40, 7) < 0.3)
    weight[3] = 0.0
    weight[5] = 1.0
    made = SparseEmbedding.from_dense(TableShape(40, 7), weight)
    assert torch.equal(made.dequantise(), weight)
    ids = torch.randint(0, 40, (3, 4), dtype=torch.int32)
    assert torch.equal(made(ids), weight[ids.long()])
    assert made(ids[:0]).shape == (0, 4, 7)
    kept = int((weight != 0).sum())
    assert sum(b.numel() * b.element_size() for b in made.buffers()) == 5 * kept + 4 * 41


def test_columns_beyond_256_take_two_bytes():
    weight = torch.randn(6, 384) * (torch.rand(6, 384) < 0.1)
    weight[2, 383] = 1.5
    made = SparseEmbedding.from_dense(TableShape(6, 384), weight)
    made.check()
    assert torch.equal(made(torch.arange(6)), weight)
    assert sum(b.nbytes for b in made.buffers()) == 6 * int((weight != 0).sum()) + 4 * 7


def test_an_empty_table_gives_zeros_and_wide_ones_are_refused():
    assert not bool(SparseEmbedding.from_dense(TableShape(4, 3), torch.zeros(4, 3))(torch.arange(4)).any())
    with pytest.raises(ValueError, match="dim"):
        SparseEmbedding(TableShape(4, 40_000), 1)
    with pytest.raises(ValueError, match="kept"):
        SparseEmbedding(TableShape(4, 3), 13)
