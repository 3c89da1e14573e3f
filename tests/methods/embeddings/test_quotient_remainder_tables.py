from __future__ import annotations

import pytest

from lessen.errors import BudgetError
from lessen.methods.embeddings.quotient_remainder import (
    QuotientRemainderTables,
    collisions_for,
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
    assert task.score(result, "train") > 0.6
