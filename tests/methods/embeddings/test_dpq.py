from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import size_of, table_bytes
from lessen.methods.embeddings.dpq import CodebookTable, DifferentiablePQTables, MultiGranularTables, _empty
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask


def table(head=30, tail=8, centroids=8, dim=5, groups=2):
    generator = torch.Generator().manual_seed(0)
    book = torch.randn(groups, centroids, -(-dim // groups), generator=generator)
    weight = torch.randn(30, dim, generator=generator)
    return CodebookTable(TableShape(30, dim, padding_idx=0), weight, book, torch.arange(30).flip(0), head, tail)


def test_output_is_the_nearest_centroid_and_gradients_go_straight_through():
    made = table()
    ids = torch.tensor([3, 4, 3])
    out = made(ids)
    book = made.codebook.weight.detach().view(2, 8, 3)
    queries = made.queries.weight.detach().view(30, 2, 3)
    for place, number in enumerate(ids.tolist()):
        centres = [book[g, (book[g] - queries[number, g]).square().sum(1).argmin()] for g in range(2)]
        assert torch.allclose(out[place], torch.cat(centres)[:5], atol=1e-6)
    upstream = torch.randn(3, 5)
    (out * upstream).sum().backward()
    assert torch.allclose(made.queries.weight.grad[3, :5], upstream[0] + upstream[2])
    assert made.codebook.weight.grad is None or not bool(made.codebook.weight.grad.any())


def test_the_codebook_loss_pulls_centroids_only_to_the_queries():
    made = table().train()
    made(torch.tensor([3]))
    made.penalty().backward()
    assert made.queries.weight.grad is None or not bool(made.queries.weight.grad.any())
    codes = made._codes(made.queries.weight[3:4], torch.tensor([3]))[0]
    rows = codes + torch.tensor([0, 8])
    expected = 2 * (made.codebook.weight[rows] - made.queries.weight[3].view(2, 3)) / 6
    assert torch.allclose(made.codebook.weight.grad[rows], expected.detach(), atol=1e-6)
    assert made.penalty() is None


@pytest.mark.parametrize(("head", "tail"), [(30, 8), (6, 3)])
def test_the_stored_table_answers_what_training_saw(head, tail):
    made = table(head, tail).eval()
    ids = torch.arange(30)
    assert torch.allclose(made.stored()(ids), made(ids).detach(), atol=1e-6)


def test_rare_ids_use_a_prefix_of_the_codebook():
    made = table(head=6, tail=3).eval()
    ids = torch.arange(30)
    codes = made._codes(made.queries(ids), ids)
    rare = made.rank >= 6
    assert int(codes[rare].max()) < 3
    assert int(codes[~rare].max()) >= 3
    same = table(head=30, tail=3).eval()
    assert torch.equal(same._codes(same.queries(ids), ids), table()._codes(table().queries(ids), ids))


@pytest.mark.parametrize("method", [DifferentiablePQTables, MultiGranularTables])
def test_bytes_and_findings(method):
    task = TableTask()
    result, ledger = Recipe([method(groups=4)]).apply(task.reference(0), task)
    assert table_bytes(result) < 0.15 * 2700 * 48
    assert ledger[0].findings["tables"]["items"]["groups"] == 4
    assert not bool(result.items(torch.tensor([0])).any())
    assert_tables_learned(result, task)


def test_a_share_picks_the_groups():
    task = TableTask()
    result, ledger = Recipe([DifferentiablePQTables(share=0.0785)]).apply(task.reference(0), task)
    assert table_bytes(result) == pytest.approx(0.0785 * 2700 * 48, rel=0.02)
    assert ledger[0].findings["tables"]["items"]["groups"] in (5, 6)


@pytest.mark.parametrize(
    ("method", "shares"), [(DifferentiablePQTables, (0.2, 0.1, 0.05)), (MultiGranularTables, (0.1, 0.05))]
)
def test_other_codebooks_are_tried_where_the_given_one_misses_a_share(method, shares):
    shape = TableShape(9000, 16)
    head, tail = method().tiers(shape)

    def stored(groups, centroids):
        return size_of(lambda: _empty(shape, groups, centroids, head, tail))

    for share in shares:
        wanted = int(share * 9000 * 64)
        assert stored(*method().sizes_for(shape, head, tail, wanted)) == pytest.approx(wanted, rel=0.02)
    assert method(centroids=64).sizes_for(shape, head, tail, stored(5, 64)) == (5, 64)
