from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.mixed_width import MixedWidthEmbedding


def made(widths=(4, 2, 4, 2)):
    shape = TableShape(30, 4, segments=[("a", 1, 9), ("b", 10, 5), ("c", 15, 15)])
    table = MixedWidthEmbedding(shape, list(widths))
    for number, block in enumerate(table.blocks):
        width = table.widths[number]
        rows = torch.randn(block.rows, width)
        table.fill(number, rows, torch.randn(width, 4) if width < 4 else None)
    return table


def test_each_field_reads_its_own_rows_through_its_own_projection():
    table = made()
    dense = table.dequantise()
    rows, projection = torch.randn(15, 2), torch.randn(2, 4)
    table.fill(3, rows, projection)
    changed = table.dequantise()
    assert torch.allclose(changed[15:], rows @ projection, atol=1e-6)
    assert torch.equal(changed[:15], dense[:15])
    ids = torch.tensor([[29, 0], [12, 3]], dtype=torch.int32)
    assert torch.equal(table(ids), changed[ids.long()])
    assert table(ids[:0]).shape == (0, 2, 4)


def test_bytes_gradients_and_twin():
    table = made()
    assert sum(p.numel() for p in table.parameters()) == (1 + 5) * 4 + (9 + 15) * 2 + 2 * 2 * 4
    table(torch.arange(30)).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in table.parameters())
    twin = MixedWidthEmbedding.from_config(table.config())
    twin.load_state_dict(table.state_dict())
    assert torch.equal(twin.dequantise(), table.dequantise())


@pytest.mark.parametrize("widths", [[4, 4, 4], [0, 4, 4, 4], [5, 4, 4, 4], "wide", [2.0, 4, 4, 4]])
def test_senseless_configurations_are_refused(widths):
    with pytest.raises((ValueError, TypeError), match="widths"):
        MixedWidthEmbedding.from_config({**made().config(), "widths": widths})
