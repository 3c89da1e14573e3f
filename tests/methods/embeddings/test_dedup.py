from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import NothingMatchedError
from lessen.method import Context
from lessen.methods.embeddings.dedup import DedupRows
from lessen.stored.quantized_embedding import QuantizedEmbedding


def planted(noise=0.0):
    table = nn.Embedding(1000, 16)
    with torch.no_grad():
        table.weight[600:] = table.weight[torch.arange(400) % 50]
        table.weight[600:] += noise * torch.randn(400, 16)
    return table


def test_planted_copies_are_all_found_and_nothing_is_lost():
    table = planted()
    context = Context()
    made = DedupRows(bits=32).apply(nn.Sequential(table), None, context)[0]
    assert context.findings["tables"]["0"] == {"distinct": 600, "of": 1000}
    assert torch.equal(made.dequantise(), table.weight.detach())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_result_equals_the_quantised_table_bit_for_bit(bits):
    table = planted()
    made = DedupRows(bits=bits).apply(nn.Sequential(table), None, Context())[0]
    whole = QuantizedEmbedding.from_dense(table, bits, greedy=bits == 2)
    assert torch.equal(made.dequantise(), whole.dequantise())
    assert len(made.table.packed) == 600


def test_rows_that_differ_a_little_are_equal_only_when_quantised_alike():
    with pytest.raises(NothingMatchedError, match="1000 of 1000 rows are distinct"):
        DedupRows(bits=32).apply(nn.Sequential(planted(1e-3)), None, Context())
