from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.bitmap_embedding import BitmapEmbedding
from lessen.stored.tables.embedding import TableShape


@pytest.mark.parametrize(("rows", "dim", "density"), [(40, 7, 0.3), (5, 100, 0.9), (64, 1, 0.5), (3, 3, 0.0)])
def test_rows_equal_the_dense_table_with_its_zeros(rows, dim, density):
    weight = torch.randn(rows, dim)
    mask = torch.rand(rows, dim) < density
    made = BitmapEmbedding.from_dense(TableShape(rows, dim), weight, mask)
    assert torch.equal(made.dequantise(), weight * mask)
    ids = torch.randint(0, rows, (3, 4), dtype=torch.int32)
    assert torch.equal(made(ids), (weight * mask)[ids.long()])
    assert made(ids[:0]).shape == (0, 4, dim)
    words = -(-rows * dim // 64)
    assert sum(b.numel() * b.element_size() for b in made.buffers()) == 4 * int(mask.sum()) + 12 * words


def test_twin_and_refusals():
    made = BitmapEmbedding.from_dense(TableShape(9, 4), torch.randn(9, 4), torch.rand(9, 4) < 0.5)
    twin = BitmapEmbedding.from_config(made.config())
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin.dequantise(), made.dequantise())
    with pytest.raises(ValueError, match="kept"):
        BitmapEmbedding(TableShape(4, 3), 13)
