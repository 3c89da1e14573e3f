from __future__ import annotations

import pytest

from frozen_tables import assert_tables_learned
from lessen.errors import BudgetError
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.quotient_remainder import (
    QuotientRemainderTables,
    collisions_for,
    nearest_collisions,
    table_rows,
)
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


@pytest.mark.parametrize("ratio", [0.5, 0.2, 0.1])
def test_collisions_are_the_fewest_that_meet_the_ratio(ratio):
    sizes = [1500, 700, 300]
    found = collisions_for(sizes, ratio * 2500, 2500, 0)
    assert table_rows(sizes, found) <= ratio * 2500
    assert found == 2 or table_rows(sizes, found - 1) > ratio * 2500


def test_an_unreachable_ratio_names_the_smallest_reachable():
    with pytest.raises(BudgetError, match=r"below the ratio 0\.05"):
        collisions_for([1500], 10, 1500, 0)


@pytest.mark.parametrize("operation", ["multiply", "add"])
def test_trained_model_is_smaller_and_better_than_chance(operation):
    task = TableTask()
    result, ledger = Recipe([QuotientRemainderTables(ratio=0.3, operation=operation)]).apply(task.reference(0), task)
    rows = len(result.items.quotient.weight) + len(result.items.remainder.weight)
    assert rows <= 0.3 * 1500
    assert ledger[0].findings["tables"]["items"]["operation"] == operation
    assert_tables_learned(result, task)


def test_a_share_is_hit_from_above_where_the_next_smaller_table_is_out_of_reach():
    sizes = [100_000]
    assert collisions_for(sizes, 50_000, 100_000, 0) == 3
    assert nearest_collisions(sizes, 50_000) == 2
    assert nearest_collisions(sizes, 10_000) == 10
    assert (table_rows(sizes, 100), table_rows(sizes, 101)) == (1100, 1092)
    assert nearest_collisions(sizes, 1098) == 101  # both are within 2 %: the one that fits


def test_the_nearest_share_that_is_named_can_be_asked_for():
    task = TableTask()
    model = task.reference(0)
    with pytest.raises(BudgetError, match="nearest it can reach is") as refused:
        Recipe([QuotientRemainderTables(share=0.01)]).apply(model, task)
    nearest = float(str(refused.value).rpartition(" ")[2])
    small, _ = Recipe([QuotientRemainderTables(share=nearest)]).apply(model, task)
    assert table_bytes(small) == pytest.approx(nearest * table_bytes(model), rel=0.02)
