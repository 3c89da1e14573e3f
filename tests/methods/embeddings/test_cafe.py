from __future__ import annotations

import pytest
import torch
from torch import nn

from frozen_tables import assert_tables_learned
from lessen.method import Context
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings.cafe import CafeTables, HotColdTable
from lessen.methods.sites import module_bytes
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask


def table(hot=6, threshold=3.0):
    made = HotColdTable(TableShape(300, 4), hot, [40], threshold, 0.99)
    made.cold.reset(0.1, torch.Generator().manual_seed(0))
    return made


def step(made, ids):
    made.train()
    made(ids).square().sum().backward()
    made.update()


def test_promotion_leaves_the_output_unchanged_and_the_row_is_then_its_own():
    made = table()
    ids = torch.tensor([5] * 8 + list(range(20, 40)))
    before = made.lookup(torch.arange(300)).detach()
    step(made, ids)
    assert int(made.sketch.row_of(torch.tensor([5]))) >= 0
    assert torch.equal(made.lookup(torch.arange(300)), before)
    made.zero_grad()
    made(torch.tensor([5])).sum().backward()
    assert bool(made.hot.weight.grad.any())
    assert not bool(made.cold.table.weight.grad.any())


def test_importance_is_the_gradient_norm_over_the_mean_of_the_field():
    made = table()
    ids, scores = made.importance(
        torch.tensor([3, 9, 9]), torch.tensor([[3.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 2.0, 0]])
    )
    assert ids.tolist() == [3, 9]
    assert scores.tolist() == pytest.approx([1.5, 1.5])


def test_without_promotion_it_is_the_hashing_trick_bit_for_bit():
    made = table(threshold=1e9)
    step(made, torch.arange(300))
    stored = made.stored()
    assert torch.equal(stored.dequantise(), made.cold.dequantise())


@pytest.mark.parametrize("hot", [3, 12])
def test_the_stored_form_gives_the_same_rows_and_has_the_bytes_it_said(hot):
    made = table(hot)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        step(made, torch.randint(0, 30, (64,), generator=generator))
        with torch.no_grad():
            made.hot.weight += 0.1
    stored = made.stored()
    assert torch.equal(stored.dequantise(), made.eval().lookup(torch.arange(300)))
    assert module_bytes(stored) == made.stored_bytes()


def test_a_share_is_met_and_the_model_learns():
    task = TableTask()
    result, ledger = Recipe([CafeTables(share=0.35, threshold=2.0)]).apply(task.reference(0), task)
    assert ledger[0].findings["share"] == pytest.approx(0.35, rel=0.02)
    found = ledger[0].findings["tables"]["items"]
    assert found["sketch_bytes"] == 48 * found["hot"]
    assert_tables_learned(result, task)


def test_a_demoted_id_reads_its_shared_row_again_and_its_own_is_free():
    made, five = table(), torch.tensor([5])
    step(made, torch.tensor([5] * 8 + list(range(20, 40))))
    shared = made.cold(five).detach().clone()
    with torch.no_grad():
        made.hot.weight += 1.0
    assert torch.equal(made.lookup(five), shared + 1.0)
    free = len(made.sketch.free_rows())
    made.sketch.decay(1e-6, made.threshold)
    assert len(made.sketch.free_rows()) > free
    assert torch.equal(made.lookup(five), shared)
    # a second promotion copies the shared row as it is by then
    with torch.no_grad():
        made.cold.table.weight.mul_(2.0)
    step(made, torch.tensor([5] * 8 + list(range(20, 40))))
    assert int(made.sketch.row_of(five)) >= 0
    assert torch.equal(made.lookup(five), shared * 2.0)


def test_scores_decay_only_once_ten_thresholds_a_bucket_came_in():
    made = table(hot=2, threshold=3.0)
    ids = torch.arange(12)
    steps = 0
    while made.inserted + 12 <= 10 * 2 * 3.0:
        step(made, ids)  # one field: importances of a batch of twelve sum to twelve
        steps += 1
        assert made.inserted == pytest.approx(12.0 * steps)
    before = float(made.sketch.scores.sum())
    step(made, ids)
    assert steps == 5
    assert made.inserted == 0.0
    owned = made.sketch.rows >= 0
    assert float(made.sketch.scores.sum()) <= 0.99 * (before + 12.0) + 1e-9
    assert bool((made.sketch.scores[owned] >= 3.0).all())


def test_serving_inserts_nothing():
    made = table()
    step(made, torch.arange(50))
    state = {name: value.clone() for name, value in made.sketch.state_dict().items()}
    made.eval()
    made(torch.arange(300))
    with torch.no_grad():
        made.train()(torch.arange(300))
    made.update()
    assert all(torch.equal(value, state[name]) for name, value in made.sketch.state_dict().items())


@pytest.mark.parametrize(("ratio", "part"), [(0.1, 0.5), (0.2, 0.3)])
def test_rows_and_bytes_follow_the_formulas(ratio, part):
    shape = TableShape(3001, 8, padding_idx=0, segments=[("a", 1, 2000), ("b", 2001, 50), ("c", 2051, 950)])
    wanted = Wanted(nn.Embedding(3001, 8, padding_idx=0), shape, None, None)
    made = CafeTables(ratio=ratio, hash_part=part).replacement(wanted, Context())
    hot = int(2950 * ratio * (1 - part) + 1e-9)
    buckets = [1, -int(-2000 * ratio * part // 1), 50, -int(-950 * ratio * part // 1)]
    assert len(made.hot.weight) == len(made.sketch.ids) == hot
    assert made.cold.buckets == buckets
    # a hot row and its id; shared rows; four int64 constants of the hash of each block
    assert made.stored_bytes() == hot * (4 * 8 + 4) + sum(buckets) * 4 * 8 + 4 * 32
    assert made.threshold == {0.1: 20.0, 0.2: 10.0}[ratio]
