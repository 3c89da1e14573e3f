from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.errors import BudgetError
from lessen.methods.embeddings._shared.budget import solve, table_bytes, targets
from lessen.methods.embeddings.hash import HashTables
from lessen.methods.embeddings.quotient_remainder import QuotientRemainderTables
from lessen.methods.embeddings.unified import UnifiedTables
from lessen.methods.sites import Site
from lessen.recipe import Recipe
from lessen.stored.fields import FieldEmbedding, Segment
from lessen.testing.toys import TableTask


class Fields(TableTask):
    """The toy task over one flat table of two large fields and a small one."""

    def build(self):
        model = super().build()
        table = FieldEmbedding([Segment("a", 1, 700), Segment("b", 701, 790), Segment("c", 1491, 9)], 12)
        with torch.no_grad():
            table.weight[0] = 0.0
        model.items = table
        return model


@pytest.mark.parametrize("chunks", [1, 2])
def test_fields_share_one_memory_and_small_ones_stay_exact(chunks):
    task = Fields()
    result, ledger = Recipe([UnifiedTables(ratio=0.25, chunks=chunks)]).apply(task.reference(0), task)
    assert result.items.memory.weight.numel() == pytest.approx(0.25 * 1490 * 12, rel=0.01)
    assert len(result.items.exact.weight) == 10
    assert ledger[0].findings["tables"]["items"]["exact_blocks"] == [0, 3]
    assert_tables_learned(result, task)


@pytest.mark.parametrize("method", [UnifiedTables, HashTables])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.05])
def test_a_share_of_the_bytes_is_met(method, share):
    task = TableTask()
    result, ledger = Recipe([method(share=share)]).apply(task.reference(0), task)
    assert table_bytes(result) == pytest.approx(share * 2700 * 48, rel=0.02)
    assert ledger[0].findings["share"] == pytest.approx(share, rel=0.02)


def test_a_share_out_of_reach_is_refused_before_training():
    task = TableTask()
    model = task.reference(0)
    with pytest.raises(BudgetError, match="nearest it can reach is"):
        Recipe([UnifiedTables(share=0.0001)]).apply(model, task)
    with pytest.raises(BudgetError, match="emb-qr"):
        Recipe([QuotientRemainderTables(share=0.001)]).apply(model, task)
    assert targets(model, [Site(("items",), model.items)], 0.1) == [1]  # the other table alone takes 44 %


def test_the_solver_finds_the_nearest_knob():
    assert solve(lambda knob: 10 * knob, 1, 100, 254) == 25
    assert solve(lambda knob: 10 * knob, 1, 100, 256) == 26
    assert solve(lambda knob: 10 * knob, 1, 100, 10**6) == 100
    assert solve(lambda knob: 10 * knob, 1, 100, 0) == 1
