from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.step_quantized import StepQuantizedEmbedding


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dim", [5, 8])
def test_values_on_the_grid_survive_exactly_and_rows_have_no_header(bits, dim):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    levels = torch.randint(low, high + 1, (20, dim)).float()
    steps = torch.tensor([0.5, 0.25])
    weight = torch.cat([levels[:8] * 0.5, levels[8:] * 0.25])
    shape = TableShape(20, dim, segments=[("a", 0, 8), ("b", 8, 12)])
    made = StepQuantizedEmbedding.from_dense(shape, weight, steps, bits)
    assert torch.equal(made.dequantise(), weight)
    assert made.codes.shape == (20, -(-dim * bits // 8))
    ids = torch.randint(0, 20, (3, 2), dtype=torch.int32)
    assert torch.equal(made(ids), weight[ids.long()])
    assert made(ids[:0]).shape == (0, 2, dim)


def test_values_beyond_the_grid_are_clipped_and_others_rounded_to_the_nearest():
    weight = torch.tensor([[-9.0, -0.6, 0.4, 9.0]])
    made = StepQuantizedEmbedding.from_dense(TableShape(1, 4), weight, torch.tensor([1.0]), 2)
    assert made.dequantise().tolist() == [[-2.0, -1.0, 0.0, 1.0]]


def test_blocks_change_nothing(monkeypatch):
    made = StepQuantizedEmbedding.from_dense(TableShape(50, 6), torch.randn(50, 6), torch.tensor([0.3]), 4)
    ids = torch.randint(0, 50, (9, 7))
    whole = made(ids)
    monkeypatch.setattr("lessen.stored.tables.step_quantized.BLOCK", 10)
    assert torch.equal(made(ids), whole)
