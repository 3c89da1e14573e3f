"""Indexes: scores are inner products, int8 ones exactly those of their codes, and the best come first."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import ConfigError, NothingMatchedError
from lessen.measure.record import measure_quality
from lessen.methods.retrieval.int8_vectors import Int8Index
from lessen.recipe import Recipe
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.tasks.retrieval.vectors import VectorsOptions, VectorsTask


@pytest.fixture
def vectors():
    return torch.randn(50, 24, generator=torch.Generator().manual_seed(0))


def test_flat_scores_are_inner_products_and_search_gives_the_best_first(vectors):
    index = FlatVectors.of(vectors)
    torch.testing.assert_close(index(vectors[:3]), vectors[:3] @ vectors.t())
    scores, numbers = index.search(vectors[:3], 4)
    assert numbers[:, 0].tolist() == [0, 1, 2]
    assert bool((scores[:, :-1] >= scores[:, 1:]).all())
    with pytest.raises(ValueError, match="k must lie between 1 and 50"):
        index.search(vectors[:1], 51)


def test_int8_scores_are_those_of_their_codes(vectors):
    index, queries = Int8Vectors.of(vectors), torch.randn(5, 24)
    rounded = Int8Vectors.of(queries).dequantise()
    torch.testing.assert_close(index(queries), rounded @ index.dequantise().t(), rtol=1e-5, atol=1e-5)
    assert float((index.dequantise() - vectors).abs().max()) <= float((vectors.abs().amax(dim=1) / 254).max()) + 1e-6
    assert index(queries[:0]).shape == (0, 50)


def test_a_zero_vector_scores_zero(vectors):
    vectors[3] = 0
    assert bool((Int8Vectors.of(vectors)(torch.randn(2, 24))[:, 3] == 0).all())


def test_the_task_judges_an_index_by_the_neighbours_it_finds():
    task = VectorsTask(VectorsOptions(rows=500, dim=32, queries=60, k=5))
    exact = task.reference()
    assert measure_quality(task, exact).values == {"recall@5": 1.0}
    small, ledger = Recipe([Int8Index()]).apply(exact, task)
    assert 0.9 < measure_quality(task, small).values["recall@5"] < 1.0
    assert ledger[0].bytes_after == 500 * (32 + 4)
    assert ledger[0].bytes_before == 500 * 32 * 4
    with pytest.raises(NothingMatchedError):
        Recipe([Int8Index()]).apply(small, task)
    with pytest.raises(ConfigError, match="matches no module"):
        Recipe([Int8Index(only="idx")]).apply(exact, task)
