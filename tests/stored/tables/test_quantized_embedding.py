"""Quantised tables against `nn.Embedding` and `nn.EmbeddingBag` over their own dense view."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lessen.stored.fields import FieldEmbedding, Segment
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dim", [7, 8])
def test_lookup_is_the_dense_row_for_any_shape_and_integer_type(bits, dim):
    made = QuantizedEmbedding.from_dense(nn.Embedding(40, dim, padding_idx=0), bits)
    dense = made.dequantise()
    for shape in [(), (5,), (3, 4), (0,), (2, 0), (2, 3, 4)]:
        for kind in (torch.int32, torch.int64):
            ids = torch.randint(0, 40, shape, dtype=kind)
            found = made(ids)
            assert found.shape == (*shape, dim)
            assert found.is_contiguous()
            assert torch.equal(found, dense[ids.long()])
    assert not bool(made(torch.tensor([0])).any())


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("last", [False, True])
def test_bags_pool_as_embedding_bag_does(mode, padding, last):
    bag = nn.EmbeddingBag(30, 6, mode=mode, padding_idx=padding, include_last_offset=last)
    made = QuantizedEmbedding.from_dense(bag, 8)
    twin = nn.EmbeddingBag(30, 6, mode=mode, padding_idx=padding, include_last_offset=last, _weight=made.dequantise())
    ids = torch.randint(0, 30, (11,))
    ids[:2] = 3
    offsets = torch.tensor([0, 2, 2, 7, 11] if last else [0, 2, 2, 7])
    with torch.no_grad():
        assert torch.allclose(made(ids, offsets), twin(ids, offsets), atol=1e-6)
        if not last:
            assert torch.allclose(made(ids[:10].view(5, 2)), twin(ids[:10].view(5, 2)), atol=1e-6)
        if mode == "sum":
            weights = torch.rand(11)
            found = made(ids, offsets, per_sample_weights=weights)
            assert torch.allclose(found, twin(ids, offsets, per_sample_weights=weights), atol=1e-6)


def test_what_cannot_be_right_is_refused():
    with pytest.raises(ValueError, match="max"):
        QuantizedEmbedding.from_dense(nn.EmbeddingBag(5, 4, mode="max"), 8)
    made = QuantizedEmbedding.from_dense(nn.EmbeddingBag(5, 4, mode="mean"), 8)
    with pytest.raises(ValueError, match="per_sample_weights"):
        made(torch.tensor([1]), torch.tensor([0]), torch.ones(1))
    with pytest.raises(ValueError, match="offsets"):
        made(torch.tensor([1]))
    for bad in (-1, 5):
        with pytest.raises(IndexError, match="out of range"):
            made(torch.tensor([bad]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"num_embeddings": -1}, "num_embeddings"),
        ({"num_embeddings": 2**60}, "num_embeddings"),
        ({"num_embeddings": 2**39, "embedding_dim": 2**19}, "larger than"),
        ({"embedding_dim": 1.5}, "embedding_dim"),
        ({"bits": 3}, "bits"),
        ({"bits": True}, "bits"),
        ({"mode": "max"}, "max"),
        ({"padding_idx": 9}, "padding_idx"),
        ({"segments": [["a", 0, 5], ["b", 3, 2]]}, "overlaps"),
        ({"segments": "x"}, "segments"),
        ({"num_embeddings": True}, "num_embeddings"),
    ],
)
def test_senseless_configurations_are_refused_before_memory_is_taken(change, fault):
    config = QuantizedEmbedding.from_dense(nn.Embedding(9, 4), 8).config()
    with pytest.raises((ValueError, TypeError), match=fault):
        QuantizedEmbedding.from_config({**config, **change})


def test_twin_copy_and_fields_survive():
    table = FieldEmbedding([Segment("a", 1, 4), Segment("b", 5, 6)], 8)
    made = QuantizedEmbedding.from_dense(table, 4)
    assert made.segments == table.segments
    twin = QuantizedEmbedding.from_config(made.config())
    twin.load_state_dict(made.state_dict())
    ids = torch.arange(11)
    assert torch.equal(twin(ids), made(ids))
    assert torch.equal(copy.deepcopy(made)(ids), made(ids))
    assert twin.segments == table.segments
