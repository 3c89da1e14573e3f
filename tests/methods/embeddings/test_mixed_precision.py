from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.mixed_precision import (
    BitsSearchTable,
    FixedBitsTable,
    MixedPrecisionTables,
    OffsetGrids,
    fit_to_size,
    frequency_groups,
)
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask

SHAPE = TableShape(40, 4, padding_idx=0)


def search(temperature=3e-3, target=None, groups=5):
    return BitsSearchTable(SHAPE, torch.randn(40, 4), torch.arange(40), groups, temperature, 1.0, target)


def test_groups_go_from_rare_to_frequent():
    group, rows, protection = frequency_groups(torch.tensor([9, 0, 3, 1, 100]), 2)
    assert group.tolist() == [1, 0, 0, 0, 1]
    assert rows.tolist() == [3, 2]
    assert protection.tolist() == [1.0, 109 / 4]


def test_shares_sum_to_one_and_a_hot_softmax_is_the_plain_average():
    table = search(temperature=1e6)
    with torch.no_grad():
        table.logits += torch.randn(5, 7)
    assert torch.allclose(table.shares().sum(dim=1), torch.ones(5))
    ids = torch.arange(1, 40)
    rows = table.table(ids)
    average = sum(table.grids.quantise(rows, bits) for bits in range(7)) / 7
    assert torch.allclose(table(ids), average, atol=1e-4)
    assert not bool(table(torch.tensor([0])).any())


def test_the_penalty_is_the_mean_of_bits_where_nothing_is_protected():
    table = search()
    table.weights = torch.ones(5)
    with torch.no_grad():
        for group, bits in enumerate([0, 6, 1, 3, 2]):
            table.logits[group, bits] = 1.0
    assert float(table.penalty().detach()) == pytest.approx(12)
    table.target = 10**6
    assert table.penalty() is None


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_gradients_are_those_of_lsq_plus(bits):
    torch.manual_seed(bits)
    grids, rows = OffsetGrids(torch.randn(20, 4)), torch.randn(20, 4, requires_grad=True)
    with torch.no_grad():
        grids.offset += 0.05
    grids.quantise(rows, bits).sum().backward()
    step, low, high = float(grids.positive().detach()[bits]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    level = ((rows - grids.offset) / step).detach()
    inside = (level >= low) & (level <= high)
    slope = torch.where(inside, level.round() - level, level.clamp(low, high))
    scale = 1 / (2 ** (bits - 1) * 80) ** 0.5
    assert torch.equal(rows.grad, inside.float())
    assert float(grids.steps.grad[bits]) == pytest.approx(float(slope.sum()) * scale, rel=1e-4)
    assert torch.allclose(grids.offset.grad, (~inside).float().sum(dim=0) * scale, atol=1e-5)


def test_the_largest_width_with_a_fair_share_is_taken():
    table = search(temperature=1.0)
    with torch.no_grad():
        table.logits[:, 2] = 3.0
        table.logits[1, 4] = 2.0
    table.decide()
    assert table.bits.tolist() == [2, 4, 2, 2, 2]


@pytest.mark.parametrize("target", [0, 37, 60, 100, 10**6])
def test_sizes_move_to_the_target_at_the_least_error(target):
    sizes = torch.arange(7) * torch.tensor([[1], [3], [5]])
    errors = torch.tensor([[1.0], [2.0], [30.0]]) * 4.0 ** -torch.arange(7)
    chosen = fit_to_size(torch.tensor([3, 3, 3]), errors.double(), sizes, target)
    reached = int(sizes[torch.arange(3), chosen].sum())
    assert abs(reached - min(target, 54)) <= 2
    assert chosen[2] >= chosen[1]


def test_stored_rows_equal_the_training_form_bit_for_bit():
    grids = OffsetGrids(torch.randn(40, 4))
    with torch.no_grad():
        grids.offset += torch.randn(4) * 0.1
    table = FixedBitsTable(SHAPE, torch.randn(40, 4), torch.arange(40) % 7, grids)
    ids = torch.arange(40)
    stored = table.stored()
    assert torch.equal(stored(ids), table(ids))
    assert not bool(stored(ids)[7].any())
    assert sum(b.numel() * b.element_size() for b in stored.buffers()) == table.stored_bytes()


@pytest.mark.parametrize(("share", "start"), [(0.15, "given"), (0.08, "fresh"), (None, "given")])
def test_a_share_is_met_and_frequent_ids_get_more_bits(share, start):
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([MixedPrecisionTables(share=share, search_epochs=1, start=start)]).apply(model, task)
    if share is not None:
        assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    assert table_bytes(result) < 0.25 * table_bytes(model)
    found = ledger[0].findings["tables"]["items"]
    assert sum(found["rows_by_bits"]) == 1500
    assert_tables_learned(result, task)
