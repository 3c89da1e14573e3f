from __future__ import annotations

import pytest
import torch

from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.product_quantized import ProductQuantizedEmbedding


@pytest.mark.parametrize("centroids", [16, 40, 256])
@pytest.mark.parametrize("groups", [1, 3, 4])
def test_lookup_gathers_the_centroids(centroids, groups):
    codes = torch.randint(0, centroids, (50, groups))
    width = -(-10 // groups)
    book = torch.randn(groups, centroids, width)
    made = ProductQuantizedEmbedding.from_codes(TableShape(50, 10, padding_idx=3), codes, book)
    expected = torch.stack([torch.cat([book[g, codes[i, g]] for g in range(groups)])[:10] for i in range(50)])
    expected[3] = 0.0
    ids = torch.randint(0, 50, (4, 3), dtype=torch.int32)
    assert torch.equal(made(ids), expected[ids.long()])
    assert made.codes.numel() == 50 * (groups if centroids > 16 else -(-groups // 2))


def test_codebooks_take_gradients():
    made = ProductQuantizedEmbedding.from_codes(
        TableShape(4, 2), torch.tensor([[0], [1], [1], [0]]), torch.randn(1, 2, 2)
    )
    made(torch.tensor([1, 2])).sum().backward()
    assert made.codebook.weight.grad.tolist() == [[0, 0], [2, 2]]


def test_senseless_configurations_are_refused():
    for change in ({"groups": 0}, {"groups": 11}, {"centroids": 257}, {"centroids": 1.0}):
        with pytest.raises((ValueError, TypeError)):
            ProductQuantizedEmbedding.from_config(
                {"num_embeddings": 5, "embedding_dim": 10, "groups": 2, "centroids": 4, **change}
            )


@pytest.mark.parametrize(("bags", "length"), [(0, 3), (5, 1), (4000, 7), (3, 0)])
def test_bags_of_one_length_are_sums_of_lookups(bags, length):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 40, (50, 3), generator=generator)
    book = torch.randn(3, 40, 4, generator=generator)
    made = ProductQuantizedEmbedding.from_codes(TableShape(50, 10, mode="sum"), codes, book)
    ids = torch.randint(0, 50, (bags, length), generator=generator)
    assert torch.allclose(made(ids), made.lookup(ids).sum(dim=1), atol=1e-5)
    if ids.numel():
        made(ids).sum().backward()
        assert bool(made.codebook.weight.grad.any())
