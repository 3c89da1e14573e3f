from __future__ import annotations

import pytest

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings.weighted_hash import WeightedHashTables
from lessen.methods.sites import module_bytes
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


def test_rows_and_weights_take_equal_bytes_and_a_share_is_met():
    task = TableTask()
    result, ledger = Recipe([WeightedHashTables(share=0.3)]).apply(task.reference(0), task)
    assert ledger[0].findings["share"] == pytest.approx(0.3, rel=0.02)
    assert module_bytes(result.items.weights) == pytest.approx(module_bytes(result.items.table), rel=0.05)
    assert_tables_learned(result, task)
