from __future__ import annotations

import pytest

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.dhe import DeepHashTables
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


@pytest.mark.parametrize("share", [None, 0.3])
def test_the_network_replaces_the_rows_and_learns(share):
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([DeepHashTables(share=share)]).apply(model, task)
    if share:
        assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    assert ledger[0].findings["tables"]["items"]["layers"] == 2
    assert_tables_learned(result, task)
