from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.pep import LearnedThresholdTables, MaskedTable, Rising, SoftThresholdTable
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask

SHAPE = TableShape(30, 4, segments=[("a", 1, 9), ("b", 10, 20)])


def form(sharing="feature_dim", start=0.1, keep=40):
    return SoftThresholdTable(SHAPE, torch.randn(30, 4), torch.ones(30), keep, start, sharing)


@pytest.mark.parametrize(
    ("sharing", "shape"),
    [
        ("global", (1, 1)),
        ("dimension", (1, 4)),
        ("feature", (30, 1)),
        ("field", (3, 1)),
        ("field_dim", (3, 4)),
        ("feature_dim", (30, 4)),
    ],
)
def test_values_shrink_keep_their_sign_and_vanish_below_their_threshold(sharing, shape):
    table = form(sharing)
    assert table.thresholds.shape == shape
    with torch.no_grad():
        table.thresholds += torch.randn(shape)
    ids = torch.arange(30)
    weight, limit = table.table.weight.detach(), torch.sigmoid(table._thresholds(ids)).detach()
    seen = table(ids).detach()
    assert torch.allclose(seen.abs(), (weight.abs() - limit).clamp(min=0))
    assert bool((seen * weight >= 0).all())
    assert torch.equal(seen != 0, weight.abs() > limit)


def test_gradients_are_those_of_the_sheet():
    table = form().double()
    seen = table(torch.arange(30))
    seen.sum().backward()
    weight, limit = table.table.weight.detach(), torch.sigmoid(table.thresholds.detach())
    alive = (weight.abs() > limit).double()
    assert torch.equal(table.table.weight.grad, alive)
    assert torch.allclose(table.thresholds.grad, -weight.sign() * limit * (1 - limit) * alive)


def test_thresholds_arrive_at_the_last_step_and_wait_for_an_epoch():
    table, hook, left = form(), Rising(every=5, epochs=4), []
    for step in range(1, 401):
        hook.after_step(table, step)
        if step % 100 == 0:
            hook.epoch_end(table, step // 100, 0.0)
        left.append(int((table(torch.arange(30)) != 0).sum()))
    assert left[0] == left[100]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 40
    table.settle()
    assert torch.equal(table.mask, table(torch.arange(30)) != 0)


def test_values_of_one_and_more_are_ordered_by_size():
    values = torch.tensor([[3.0, -5.0, 0.1, 1.0]])
    table = SoftThresholdTable(TableShape(1, 4), values, torch.ones(1), 2, 0.01, "global")
    table.settle()
    assert table.mask.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("sharing", ["global", "feature_dim"])
def test_thresholds_are_higher_by_the_evidence_and_rows_never_read_go_first(sharing):
    counts = torch.tensor([0, 2, 10, 90])
    weight = torch.tensor([0.9, 0.02, 0.012, 0.01]).unsqueeze(1).expand(4, 3).clone()
    table = SoftThresholdTable(TableShape(4, 3), weight, counts, 6, 1e-4, sharing)
    ids = torch.arange(4)
    evidence = torch.tensor([2 / 12, 0.5, 0.9])
    limit = torch.sigmoid(table._thresholds(ids)).detach()[:, 0]
    assert torch.allclose(limit[1:], 1e-4 * evidence.mean() / evidence, rtol=1e-3)
    assert not bool(table(ids)[0].any())
    table.settle()
    # 0.02 / 6 < 0.012 / 2 < 0.01 * 0.9
    assert table.mask[:, 0].tolist() == [False, False, True, True]


def test_pruned_values_stay_zero_in_training():
    mask = torch.rand(30, 4) < 0.5
    table = MaskedTable(SHAPE, torch.randn(30, 4), mask)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.1, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        table(torch.arange(30)).square().sum().backward()
        optimizer.step()
        assert not bool(table.table.weight[~mask].any())
    assert torch.equal(table.stored().dequantise(), table(torch.arange(30)))


@pytest.mark.parametrize(("share", "start"), [(0.5, "given"), (0.2, "fresh")])
def test_a_share_counts_values_and_places(share, start):
    task = TableTask()
    model = task.reference(0)
    method = LearnedThresholdTables(share=share, search_epochs=2, every=1, start=start)
    result, ledger = Recipe([method]).apply(model, task)
    assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    findings = ledger[0].findings
    assert findings["share"] == pytest.approx(share, rel=0.02)
    assert findings["tables"]["items"]["kept"] == result.items.kept
    assert not bool(result.items.dequantise()[0].any())
    assert_tables_learned(result, task)
