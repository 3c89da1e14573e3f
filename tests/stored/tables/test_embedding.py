"""Bags, coverage of fields and sizes shared by all compact tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.stored.fields import Segment, cover
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.fallback_embedding import FallbackEmbedding
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.hashed_embedding import HashedEmbedding
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare


def test_cover_names_every_row_once():
    parts = cover((Segment("b", 6, 2), Segment("a", 1, 3)), 10)
    assert parts == (Segment("", 0, 1), Segment("a", 1, 3), Segment("", 4, 2), Segment("b", 6, 2), Segment("", 8, 2))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 2])
def test_generic_bags_equal_embedding_bag(mode, padding):
    bag = nn.EmbeddingBag(20, 5, mode=mode, padding_idx=padding)
    made = HalfEmbedding.from_dense(bag, "bf16")
    twin = nn.EmbeddingBag(20, 5, mode=mode, padding_idx=padding, _weight=made.dequantise())
    ids, offsets = torch.tensor([2, 2, 1, 5, 2, 9]), torch.tensor([0, 1, 1, 4])
    assert torch.allclose(made(ids, offsets), twin(ids, offsets))
    assert torch.allclose(made(ids.view(2, 3)), twin(ids.view(2, 3)))
    assert made(ids[:0].view(0, 3)).shape == (0, 5)


def test_half_tables_answer_in_float32_and_refuse_overflow():
    table = nn.Embedding(6, 4)
    made = HalfEmbedding.from_dense(table, "fp16")
    assert torch.equal(made(torch.arange(6)), table.weight.detach().half().float())
    with torch.no_grad():
        table.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="bf16"):
        HalfEmbedding.from_dense(table, "fp16")
    with pytest.raises(ValueError, match="dtype"):
        HalfEmbedding(TableShape(3, 2), "fp8")


def test_pruned_table_reads_kept_rows_and_fallbacks():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])
    position = torch.tensor([0, 2, 1, 2], dtype=torch.int32)
    made = PrunedEmbedding.from_dense(TableShape(4, 2), weight, position)
    assert made.dequantise().tolist() == [[1, 2], [9, 9], [3, 4], [9, 9]]
    assert made(torch.zeros(0, 3, dtype=torch.int32)).shape == (0, 3, 2)
    with pytest.raises(ValueError, match="kept"):
        PrunedEmbedding(TableShape(4, 2), 0)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("kind", ["pruned", "hashed"])
def test_fused_bags_of_inner_tables_equal_pooled_lookups(kind, quantised):
    shape = TableShape(40, 6, mode="sum")
    if kind == "pruned":
        made = PrunedEmbedding.from_dense(shape, torch.randn(9, 6), torch.randint(0, 9, (40,), dtype=torch.int32))
    else:
        made = HashedEmbedding(shape, [7], 1, False)
        made.reset(0.1, torch.Generator().manual_seed(0))
    if quantised:
        made.table = QuantizedEmbedding.from_dense(made.table, 8)
    ids, offsets, weights = torch.randint(0, 40, (11,), dtype=torch.int32), torch.tensor([0, 2, 2, 7]), torch.rand(11)
    dense = made.lookup(torch.arange(40)).detach()
    twin = nn.EmbeddingBag(40, 6, mode="sum", _weight=dense)
    assert torch.allclose(made(ids, offsets), twin(ids, offsets.int()), atol=1e-5)
    assert torch.allclose(made(ids, offsets, weights), twin(ids, offsets.int(), weights), atol=1e-5)
    assert torch.allclose(made(ids[:10].view(5, 2)), twin(ids[:10].view(5, 2)), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", [None, "sum", "mean"])
def test_a_table_answers_in_the_type_of_the_one_it_replaced(dtype, mode):
    table = (nn.Embedding(40, 6) if mode is None else nn.EmbeddingBag(40, 6, mode=mode)).to(dtype)
    made = QuantizedEmbedding.from_dense(table, 8)
    ids = torch.randint(0, 40, (5, 3))
    assert made(ids).dtype == dtype
    assert torch.allclose(made(ids).float(), table(ids).float(), atol=0.1)
    assert QuantizedEmbedding.from_config(made.config())(ids).dtype == dtype
    if mode == "sum":
        assert made(ids, per_sample_weights=torch.rand(5, 3, dtype=dtype)).dtype == dtype
    assert "output_dtype" not in QuantizedEmbedding.from_dense(table.float(), 8).config()  # as it was stored before


@pytest.mark.parametrize("mode", [None, "sum"])
@pytest.mark.parametrize("bad", [-1, 40, 10**12])
@pytest.mark.parametrize("count", [3, 3000])
def test_ids_beyond_the_table_are_refused_where_a_search_would_answer(mode, bad, count):
    shape = TableShape(40, 6, mode=mode)
    made = TieredEmbedding(shape, 5, FallbackEmbedding.from_rows(bare(shape), torch.ones(1, 6)))
    made.fill_hot(torch.arange(5), torch.randn(5, 6))
    ids = torch.full((count, 1), 5)
    with torch.no_grad():  # where compiled lookups answer large batches
        made(ids)
        ids[1] = bad
        with pytest.raises(IndexError, match="out of range: found .*, rows 40"):
            made(ids)
