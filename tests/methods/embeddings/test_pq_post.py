from __future__ import annotations

import pytest
import torch

from lessen.errors import BudgetError
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings._shared.kmeans import nearest, weighted_kmeans
from lessen.methods.embeddings.pq_post import ProductQuantTables, fit_codes
from lessen.recipe import Recipe
from lessen.stored.tables.product_quantized import ProductQuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding
from lessen.testing.toys import TableTask


def error(points, weights, centroids):
    return float((weights * nearest(points, centroids)[1]).sum() / weights.sum())


def test_objective_never_rises_with_more_iterations():
    points, weights = torch.randn(500, 3), torch.rand(500) + 0.01
    values = []
    for iterations in (1, 2, 5, 25):
        centroids, _ = weighted_kmeans(points, weights, 8, torch.Generator().manual_seed(0), iterations)
        values.append(error(points, weights, centroids))
    assert values == sorted(values, reverse=True)


def test_as_many_centroids_as_distinct_points_is_exact():
    points = torch.randn(6, 2).repeat(10, 1)
    centroids, index = weighted_kmeans(points, torch.ones(60), 16, torch.Generator().manual_seed(0))
    assert torch.allclose(centroids[index], points, atol=1e-6)


def test_gaussian_error_lies_between_the_rate_distortion_floor_and_what_is_known_to_be_reached():
    weight = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    codes, book = fit_codes(weight, torch.ones(20_000), 2, 256, 20_000, torch.Generator().manual_seed(1))
    back = torch.cat([book[0, codes[:, 0]], book[1, codes[:, 1]]], dim=1)
    assert 2.0 ** (-2 * 2) < float((back - weight).square().mean()) < 0.12


def test_weighting_helps_the_rows_that_are_looked_up():
    weight = torch.randn(3000, 4)
    weights = torch.full((3000,), 0.1)
    weights[:50] = 1000.0
    generator = torch.Generator().manual_seed(0)
    weighted = fit_codes(weight, weights, 1, 64, 3000, generator)
    plain = fit_codes(weight, torch.ones(3000), 1, 64, 3000, generator)

    def hot_error(fitted):
        codes, book = fitted
        return float((book[0, codes[:50, 0]] - weight[:50]).square().mean())

    assert hot_error(weighted) < 0.3 * hot_error(plain)


def test_hot_rows_stay_exact_and_the_rest_is_coded():
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([ProductQuantTables(groups=4, hot=0.1)]).apply(model, task)
    counts = torch.bincount(task.items[:1024], minlength=1500)
    hottest = torch.argsort(counts, descending=True, stable=True)[:150]
    assert isinstance(result.items, TieredEmbedding)
    assert torch.equal(result.items(hottest), model.items.weight.detach()[hottest])
    assert ledger[0].findings["tables"]["items"]["hot"] == 150
    plain, _ = Recipe([ProductQuantTables(groups=4)]).apply(model, task)
    assert isinstance(plain.items, ProductQuantizedEmbedding)
    assert not bool(plain.items(torch.tensor([0])).any())


@pytest.mark.parametrize("share", [0.5, 0.3, 0.12])
def test_a_share_of_the_bytes_is_met_by_codes_and_hot_rows(share):
    task = TableTask()
    result, ledger = Recipe([ProductQuantTables(share=share)]).apply(task.reference(0), task)
    assert table_bytes(result) == pytest.approx(share * 2700 * 48, rel=0.02)
    assert ledger[0].findings["share"] == pytest.approx(share, rel=0.02)


def test_a_share_below_the_coarsest_code_is_refused():
    task = TableTask()
    with pytest.raises(BudgetError, match=r"emb-pq-post cannot reach the share 0\.001"):
        Recipe([ProductQuantTables(share=0.001)]).apply(task.reference(0), task)


def test_codebooks_can_be_tuned_with_the_codes_fixed():
    task = TableTask()
    model = task.reference(0)
    still, _ = Recipe([ProductQuantTables(groups=2)]).apply(model, task)
    tuned, ledger = Recipe([ProductQuantTables(groups=2, fine_tune_epochs=1)]).apply(model, task)
    assert torch.equal(still.items.codes, tuned.items.codes)
    assert not torch.equal(still.items.codebook.weight, tuned.items.codebook.weight)
    assert ledger[0].train_seconds > 0
