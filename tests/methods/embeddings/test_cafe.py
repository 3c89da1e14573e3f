from __future__ import annotations

import pytest
import torch

from lessen.methods.embeddings.cafe import CafeTables, HotColdTable
from lessen.methods.sites import module_bytes
from lessen.recipe import Recipe
from lessen.stored.embedding import TableShape
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
    assert task.score(result, "train") > 0.6
