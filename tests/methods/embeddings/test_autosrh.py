from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.bilevel import HeldOut
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.autosrh import (
    GatedColumnTables,
    GatedTable,
    GateSteps,
    GroupColumnsTable,
    largest_blocks,
    popularity_groups,
    stepped,
)
from lessen.methods.sites import module_bytes
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask

SHAPE = TableShape(40, 5, padding_idx=0)


def gated(layout="blocks", target=None):
    return GatedTable(SHAPE, torch.randn(40, 5), torch.arange(40) // 3, 4, layout, 0.6, target)


def test_groups_cover_all_ids_from_rare_to_frequent_and_keep_equal_counts_together():
    counts = torch.tensor([5, 0, 0, 0, 0, 1, 2, 9])
    assert popularity_groups(counts, 4).tolist() == [2, 0, 0, 0, 0, 1, 1, 2]
    assert popularity_groups(torch.zeros(9, dtype=torch.int64), 3).tolist() == [0] * 9


def test_open_gates_change_nothing_and_folded_ones_give_the_same_rows():
    form, ids = gated(), torch.arange(40)
    assert torch.equal(form(ids)[1:], form.table.weight[1:])
    assert not bool(form(ids)[0].any())
    with torch.no_grad():
        form.gates.copy_(torch.rand_like(form.gates))
    form.settle()
    assert torch.equal(form(ids).detach(), form.searched)


def test_steps_are_normalised_in_each_group_and_stay_between_0_and_1():
    gates, gradient = torch.rand(4, 5), torch.randn(4, 5) * 10.0 ** torch.arange(-3, 1).unsqueeze(1)
    moved = (0.5 - stepped(torch.full((4, 5), 0.5), gradient, 1e-3)) / 1e-3
    assert torch.allclose(moved.abs().mean(dim=1), torch.ones(4), atol=1e-3)
    assert torch.equal(stepped(gates, gradient, 0.0), gates)
    far = stepped(gates, gradient, 100.0)
    assert float(far.min()) >= 0
    assert float(far.max()) <= 1


@pytest.mark.parametrize("keep", [0, 3, 60, 123, 200])
def test_blocks_hold_exactly_as_many_values_as_wanted_the_largest_first(keep):
    size, group, counts = torch.rand(40, 5), torch.arange(40) % 3, torch.randperm(40)
    made, columns = largest_blocks(size, group, counts, keep)
    assert int(columns[made].sum()) == keep
    assert columns.shape == (4, 5)
    means = torch.stack([size[group == kind].mean(dim=0) for kind in range(3)])
    if columns[:3].any() and not columns[:3].all():
        assert means[columns[:3]].min() > means[~columns[:3]].max()
    part = made == 3
    if part.any():
        kind = int(group[part][0])
        assert bool((group[part] == kind).all())
        others = (group == kind) & ~part
        assert counts[part].min() > counts[others].max()
        assert int((columns[3] ^ columns[kind]).sum()) == 1


@pytest.mark.parametrize("layout", ["blocks", "values"])
def test_stored_rows_equal_the_masked_ones_at_the_bytes_aimed_at(layout):
    form = gated(layout, target=500)
    form.settle()
    made = form.kept(form)
    assert isinstance(made, GroupColumnsTable) == (layout == "blocks")
    assert form.stored_bytes() == module_bytes(made.stored()) == made.stored_bytes()
    assert 496 < form.stored_bytes() <= 500
    ids = torch.arange(40)
    assert torch.equal(made.stored()(ids), made(ids))


@pytest.mark.parametrize("layout", ["blocks", "values"])
def test_rows_that_training_hardly_saw_give_way_however_large_they_are(layout):
    counts = torch.tensor([0] * 20 + [1] * 10 + [50] * 10)
    weight = torch.rand(40, 5) + torch.tensor([8.0] * 20 + [4.0] * 10 + [1.0] * 10).unsqueeze(1)
    form = GatedTable(TableShape(40, 5), weight, counts, 4, layout, 1 - 50 / 200, None)
    form.settle()
    # all 50 values of the ten rows that were trained: 1 * 5/6 against 5 / 11 at most
    dense = form.kept(form).stored().dequantise()
    assert torch.equal(dense[30:], weight[30:])
    assert not bool(dense[:30].any())


def test_the_gates_reported_are_those_that_were_folded():
    form = gated()
    with torch.no_grad():
        form.gates.fill_(0.25)
    form.settle()
    with torch.no_grad():
        form.gates.fill_(1.0)
    assert form.outcome()["gates"] == [0.25] * len(form.gates)


def test_only_tables_learn_while_gates_move():
    task = TableTask()
    model = task.build()
    model.items = GatedTable(
        TableShape.of(model.items), model.items.weight.detach(), torch.arange(1500), 4, "blocks", 0.5, None
    )
    hook = GateSteps(HeldOut(task, 4, 0), 0.05, 1e-5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task.train(model, settings=task.settings.__class__(epochs=1, learning_rate=1e-2), hooks=(hook,))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"items.table.weight", "items.gates"}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("share", "layout", "start"), [(0.4, "blocks", "given"), (0.2, "values", "fresh")])
def test_a_share_is_met(share, layout, start):
    task = TableTask()
    model = task.reference(0)
    method = GatedColumnTables(share=share, layout=layout, start=start, search_epochs=1)
    result, ledger = Recipe([method]).apply(model, task)
    assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    gates = ledger[0].findings["tables"]["items"]["gates"]
    assert all(0 <= gate <= 1 for gate in gates)
    assert not bool(result.items.dequantise()[0].any())
    assert_tables_learned(result, task)
