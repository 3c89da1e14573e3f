from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.narrow_rows import NarrowRowsEmbedding

SHAPE = TableShape(90, 4, segments=[("a", 1, 69), ("b", 70, 5), ("c", 75, 15)])
WIDTHS = [4, 2, 3, 1]


def test_rows_equal_the_masked_table():
    weight, rows = torch.randn(90, 4), torch.rand(90) < 0.6
    made = NarrowRowsEmbedding.from_dense(SHAPE, weight, rows, WIDTHS)
    width = torch.repeat_interleave(torch.tensor(WIDTHS), torch.tensor([1, 69, 5, 15]))
    expected = weight * rows.unsqueeze(1) * (torch.arange(4) < width.unsqueeze(1))
    assert torch.equal(made.dequantise(), expected)
    ids = torch.randint(0, 90, (3, 4), dtype=torch.int32)
    assert torch.equal(made(ids), expected[ids.long()])
    assert made(ids[:0]).shape == (0, 4, 4)
    values = int((rows * width).sum())
    assert sum(b.numel() * b.element_size() for b in made.buffers()) == 4 * values + 12 * 2
    twin = NarrowRowsEmbedding.from_config(made.config())
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin.dequantise(), expected)


def test_a_table_without_rows_gives_zeros_and_nonsense_is_refused():
    none = torch.zeros(90, dtype=torch.bool)
    assert not bool(NarrowRowsEmbedding.from_dense(SHAPE, torch.randn(90, 4), none, WIDTHS).dequantise().any())
    for widths, kept in (([4], [1]), ([0, 1, 1, 1], [0, 0, 0, 0]), (WIDTHS, [2, 0, 0, 0]), (WIDTHS, "many")):
        with pytest.raises((ValueError, TypeError), match="widths|kept"):
            NarrowRowsEmbedding(SHAPE, widths, kept)
