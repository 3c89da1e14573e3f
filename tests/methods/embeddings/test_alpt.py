from __future__ import annotations

import pytest
import torch
from torch import nn

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.alpt import (
    AdaptiveCodesTable,
    AdaptiveLowPrecisionTables,
    AlternatingSteps,
    Proposal,
    RowSteps,
    nearest_steps,
    stochastic_round,
)
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.task import Task
from lessen.testing.toys import TableTask
from lessen.train.settings import FitSettings


def test_rounding_is_unbiased_and_independent_within_a_row():
    rounded = stochastic_round(torch.full((1000, 100), 0.3))
    assert float(rounded.mean()) == pytest.approx(0.3, abs=0.005)
    assert set(rounded.unique().tolist()) == {0.0, 1.0}
    assert float(rounded.mean(dim=1).std()) < 0.1
    whole = torch.arange(-5.0, 5.0)
    assert torch.equal(stochastic_round(whole), whole)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_stay_in_range_and_near_the_rows(bits):
    table = AdaptiveCodesTable(TableShape(50, 6), torch.randn(50, 6), bits).eval()
    ids, steps = torch.tensor([3, 7, 20]), torch.tensor([[0.5], [0.1], [2.0]])
    before = table.codes.clone()
    rows = torch.randn(3, 6)
    table.store(ids, rows, steps)
    assert int(table.codes.min()) >= table.low
    assert int(table.codes.max()) <= table.high
    inside = (rows >= table.low * steps) & (rows <= table.high * steps)
    assert bool(((table(ids) - rows).abs() <= 1.001 * steps)[inside].all())
    others = torch.ones(50, dtype=torch.bool)
    others[ids] = False
    assert torch.equal(table.codes[others], before[others])
    assert torch.allclose(table.stored()(torch.arange(50)), table(torch.arange(50)), atol=1e-5, rtol=1e-4)


def test_the_gradient_of_a_step_is_that_of_the_sheet():
    table = AdaptiveCodesTable(TableShape(4, 3), torch.randn(4, 3), 4)
    rows, steps = torch.tensor([[0.26, -9.0, 9.0]]), torch.tensor([[0.1]], requires_grad=True)
    table.proposal = Proposal(torch.tensor([2]), rows, steps)
    weights = torch.tensor([1.0, 10.0, 100.0])
    (table(torch.tensor([2])) * weights).sum().backward()
    expected = (3 - 2.6) - 8 * 10 + 7 * 100
    assert float(steps.grad) == pytest.approx(expected / (1 * 3 * 7) ** 0.5, rel=1e-4)


class Regression(Task):
    """Rows must reach fixed targets; steps of a hundredth of the grid are needed to get there."""

    name = "regression"
    metrics = TableTask.metrics
    settings = FitSettings(epochs=1)

    def __init__(self):
        self.wanted = torch.full((8, 4), 0.52)

    def build(self):
        raise NotImplementedError

    def batches(self, split, seed=0):
        return iter(())

    def loss(self, model, batch):
        return (model(batch) - self.wanted[batch]).square().sum()


@pytest.mark.parametrize(("random", "arrives"), [(True, True), (False, False)])
def test_small_updates_survive_only_by_random_rounding(random, arrives, monkeypatch):
    if not random:
        monkeypatch.setattr("lessen.methods.embeddings.alpt.stochastic_round", torch.round)
    torch.manual_seed(0)
    table, task = AdaptiveCodesTable(TableShape(8, 4), torch.zeros(8, 4), 8), Regression()
    table.steps.fill_(0.05)
    hook = AlternatingSteps(task, FitSettings(learning_rate=4e-3), 0.0)
    hook.start(table)
    hook.learning_rate, ids = 4e-3, torch.tensor([1, 2, 5])
    for step in range(350):
        hook.loss(table, ids, task.loss(table, ids)).backward()
        hook.after_step(table, step)
    mean = float(table.eval()(ids).mean())
    assert (mean > 0.45) == arrives
    assert not bool(table.codes[0].any())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_first_steps_come_nearer_to_each_row_than_any_others_tried(bits):
    top = 2 ** (bits - 1)
    sizes = 10.0 ** -(torch.arange(200) % 2).unsqueeze(1)
    weight = torch.randn(200, 15, generator=torch.Generator().manual_seed(0)) * sizes

    def errors(steps):
        return ((weight / steps).round().clamp(-top, top - 1) * steps - weight).square().sum(dim=1)

    least = errors(nearest_steps(weight, -top, top - 1))
    largest = weight.abs().amax(dim=1, keepdim=True) / (top - 1)
    for part in torch.arange(12, 43).tolist():
        assert bool((least <= errors(largest * part / 40) * (1 + 1e-3)).all())
    published = 2 * weight.abs().mean(dim=1, keepdim=True) / top**0.5
    assert float((least / errors(published)).mean()) < (0.9 if bits == 2 else 0.5)


def test_rows_on_a_grid_keep_it_and_zero_rows_get_a_small_step():
    codes = torch.tensor([[7.0, -3, 0, 1], [-7, 5, 5, -2], [0, 0, 0, 0]])
    steps = nearest_steps(codes * torch.tensor([[0.5], [0.01], [1.0]]), -8, 7)
    assert steps[:2, 0].tolist() == pytest.approx([0.5, 0.01], rel=1e-5)
    assert float(steps[2]) == pytest.approx(1e-3 * (0.51 / 3), rel=1e-3)


def test_directions_are_those_of_adam_where_squares_are_rows_times_columns():
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.rand(6, 1, generator=generator) + 0.1, torch.rand(1, 4, generator=generator) + 0.1
    weight = nn.Parameter(torch.zeros(6, 4))
    optimizer, state, moved = torch.optim.Adam([weight], lr=1.0), RowSteps(6, 4), torch.zeros(6, 4)
    for _ in range(30):
        signs = torch.randint(0, 2, (6, 4), generator=generator) * 2.0 - 1.0
        weight.grad = signs * rows * columns
        optimizer.step()
        moved -= state.direction(torch.arange(6), weight.grad)
    assert torch.allclose(moved, weight.detach(), atol=0.05)
    assert state.first.dtype == torch.bfloat16


@pytest.mark.parametrize(("updates", "steps"), [("dense", 2.0), ("lazy-adam", 1.0)])
def test_rows_catch_up_on_the_decay_they_missed_only_where_it_reaches_all_rows(updates, steps, monkeypatch):
    monkeypatch.setattr(RowSteps, "direction", lambda _self, _ids, gradient: gradient)
    task, table = Regression(), AdaptiveCodesTable(TableShape(8, 4), torch.full((8, 4), 0.5), 8)
    hook = AlternatingSteps(task, FitSettings(learning_rate=0.1, table_l2=0.2, table_updates=updates), 0.0)
    hook.start(table)
    hook.learning_rate = 0.1
    for ids in ([1, 2], [2], [1, 2]):
        table.seen = [(torch.tensor(ids), torch.zeros(len(ids), 4, requires_grad=True))]
        table.seen[0][1].grad = torch.zeros(len(ids), 4)
        before = table.codes[ids].float() * table.steps[ids]
        proposal = hook._moved(table, hook.rows[table])
    # the table was not written: each step starts from the same rows
    expected = before * (1 - 0.1 * 0.2 * torch.tensor([[steps], [1.0]]))
    assert torch.allclose(proposal.rows, expected)


def test_rows_move_by_the_rate_whenever_they_are_first_seen():
    state = RowSteps(5, 3)
    for ids, size in (([1, 2], 3.0), ([2, 4], 0.1)):
        moved = state.direction(torch.tensor(ids), torch.full((2, 3), size))
        if size == 3.0:
            assert torch.allclose(moved, torch.ones(2, 3))
    assert torch.allclose(moved[1], torch.ones(3), atol=1e-5)
    assert state.count.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(("bits", "start"), [(8, "given"), (4, "fresh"), (2, "given")])
def test_a_trained_model_keeps_codes_only(bits, start):
    task = TableTask()
    model = task.reference(0)
    result, _ = Recipe([AdaptiveLowPrecisionTables(bits=bits, start=start)]).apply(model, task)
    width = {8: 20, 4: 10, 2: 7}[bits]
    assert table_bytes(result) == 2700 * width
    assert not bool(result.items.dequantise()[0].any())
    assert_tables_learned(result, task)


def test_a_share_picks_the_bits():
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([AdaptiveLowPrecisionTables(share=10 / 48)]).apply(model, task)
    assert result.items.bits == result.tags.bits == 4
    assert ledger[0].findings["share"] == pytest.approx(10 / 48, abs=1e-4)
