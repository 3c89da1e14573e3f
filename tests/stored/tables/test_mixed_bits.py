from __future__ import annotations

import pytest
import torch

from lessen.stored.bits import row_bytes
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.mixed_bits import MixedBitsEmbedding, lowest


def test_rows_equal_rounding_at_their_own_bits():
    shape = TableShape(70, 5, padding_idx=0)
    weight, bits = torch.randn(70, 5), torch.randint(0, 9, (70,))
    steps, offset = torch.rand(9) + 0.05, torch.randn(5) * 0.1
    made = MixedBitsEmbedding.from_dense(shape, weight, bits, steps, offset)
    for row in range(1, 70):
        width = int(bits[row])
        levels = ((weight[row] - offset) / steps[width]).round().clamp(lowest(width), -lowest(width) - 1)
        expected = levels * steps[width] + offset if width else torch.zeros(5)
        assert torch.equal(made.dequantise()[row], expected)
    assert not bool(made(torch.tensor([0])).any())
    ids = torch.randint(0, 70, (3, 4), dtype=torch.int32)
    assert torch.equal(made(ids), made.dequantise()[ids.long()])
    codes = sum(row_bytes(5, int(width)) for width in bits)
    assert sum(b.numel() * b.element_size() for b in made.buffers()) == codes + 16 * 5 + 4 * 9 + 4 * 5
    twin = MixedBitsEmbedding.from_config(made.config())
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin.dequantise(), made.dequantise())


def test_senseless_sizes_are_refused():
    with pytest.raises(ValueError, match="size"):
        MixedBitsEmbedding(TableShape(4, 3), 13)
