from __future__ import annotations

import pytest
import torch

from lessen.stored.fields import Segment
from lessen.stored.linears.low_rank import LowRankLinear
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.low_rank import LowRankEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding


def filled(shape, rank):
    made = LowRankEmbedding(shape, rank)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def test_each_field_uses_its_own_decoder():
    made = filled(TableShape(10, 5, segments=[("a", 1, 4), ("b", 5, 5)]), 2)
    dense = made.dequantise()
    for number, block in enumerate(made.blocks):
        rows = slice(block.start, block.start + block.rows)
        assert torch.allclose(
            dense[rows], made.table.weight[rows] @ made.decoder[number] + made.mean[number], atol=1e-6
        )
    ids = torch.tensor([[0, 9], [4, 5]], dtype=torch.int32)
    assert torch.equal(made(ids), dense[ids.long()])
    assert made.segments == (Segment("a", 1, 4), Segment("b", 5, 5))


def test_codes_can_be_quantised_again():
    made = filled(TableShape(50, 32), 16)
    before = made.dequantise()
    made.table = QuantizedEmbedding.from_dense(made.table, 8)
    assert 0 < float((made.dequantise() - before).abs().max()) < 0.5


def test_linear_dense_view_and_sizes():
    layer = LowRankLinear(6, 8, 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    inputs = torch.randn(2, 7, 6)
    assert torch.allclose(layer(inputs), inputs @ layer.dequantise().t() + layer.up.bias, atol=1e-5)
    for bad in ({"rank": 7}, {"rank": 0}, {"in_features": -1}, {"out_features": "8"}):
        with pytest.raises((ValueError, TypeError)):
            LowRankLinear.from_config({**layer.config(), **bad})
