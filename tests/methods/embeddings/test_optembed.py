from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.optembed import Candidates, LongTailedStep, NarrowTable, OptimalTables, SupernetTable
from lessen.methods.sites import module_bytes
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask

SHAPE = TableShape(30, 4, padding_idx=0, segments=[("a", 1, 9), ("b", 10, 20)])


def supernet(target=None):
    return SupernetTable(SHAPE, torch.randn(30, 4), target, 1e-5)


def test_the_slope_of_the_step_has_a_long_tail():
    x = torch.tensor([0.0, 0.2, 0.4, 0.7, 1.0, 1.5, -0.2], requires_grad=True)
    step = LongTailedStep.apply(x)
    step.sum().backward()
    assert step.tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert x.grad.tolist() == pytest.approx([2, 1.2, 0.4, 0.4, 0.4, 0, 1.2])


def test_rows_below_their_threshold_vanish_and_training_draws_every_width():
    table = supernet().eval()
    ids = torch.arange(30)
    assert torch.equal(table(ids)[1:], table.table.weight[1:])
    with torch.no_grad():
        table.thresholds[2] = 1e9
        table.table.weight[5] = 0.0
    seen = table(ids)
    assert not bool(seen[10:].any())
    assert not bool(seen[[0, 5]].any())
    table.train()
    widths = (table(torch.full((4000,), 1)) != 0).sum(dim=1).bincount(minlength=5)
    assert widths[0] == 0
    assert widths[1:].tolist() == pytest.approx([1000] * 4, abs=120)


def test_thresholds_get_the_negative_gradient_of_the_step():
    table = supernet().eval()
    with torch.no_grad():
        table.thresholds[1] = table._margin(table.table.weight, table._block(torch.arange(30)))[3] - 0.2
    table(torch.tensor([3])).sum().backward()
    assert float(table.thresholds.grad[1]) == pytest.approx(
        -1.2 * float(table.table.weight[3].detach().sum()), rel=1e-3
    )


@pytest.mark.parametrize("share", [0.6, 0.2])
def test_every_candidate_uses_exactly_its_bytes(share):
    draws = random.Random(0)
    form = supernet(int(share * 480))
    candidates = Candidates([form])
    for _ in range(20):
        widths = candidates.repair(tuple(draws.randint(1, 4) for _ in range(3)), draws)
        candidates.choose(widths)
        size = NarrowTable(SHAPE, form.table.weight, form.rows, list(form.widths)).stored_bytes()
        assert form.target - 16 <= size <= form.target
        assert not form.rows[0]


def test_stored_rows_equal_the_masked_ones():
    form = supernet(200).eval()
    candidates = Candidates([form])
    candidates.choose((4, 2, 3))
    made = form.kept(form)
    assert module_bytes(made.stored()) == made.stored_bytes()
    ids = torch.arange(30)
    assert torch.equal(made(ids), form(ids))
    assert torch.equal(made.stored()(ids), form(ids))


@pytest.mark.parametrize(("share", "start"), [(0.4, "given"), (0.1, "fresh"), (None, "given")])
def test_a_share_is_met_by_rows_and_widths(share, start):
    task = TableTask().view(settings=replace(TableTask.settings, epochs=5))
    model = task.reference(0)
    method = OptimalTables(share=share, search_epochs=1, generations=2, start=start)
    result, ledger = Recipe([method]).apply(model, task)
    if share is not None:
        assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    assert table_bytes(result) < table_bytes(model)
    findings = ledger[0].findings
    assert findings["tables"]["items"]["rows"] == sum(result.items.kept)
    assert 1 < findings["evolution"]["candidates"] <= 40
    assert_tables_learned(result, task)
