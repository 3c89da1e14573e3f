from __future__ import annotations

import copy

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.deeplight import DeepLightTables, Thinning, ThinningTable
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask


def test_the_schedule_waits_for_an_epoch_then_arrives():
    table = ThinningTable(TableShape(100, 10), torch.randn(100, 10), torch.ones(100), kept=200)
    hook = Thinning(every=10, arrive=2)
    gone = []
    for step in range(1, 401):
        hook.after_step(table, step)
        if step % 100 == 0:
            hook.epoch_end(table, step // 100, 0.0)
        gone.append(int((table.table.weight == 0).sum()))
    assert not any(gone[:109])
    assert gone == sorted(gone)
    assert gone[199] == pytest.approx(800 * (1 - 0.001**0.5), abs=2)
    assert gone[299] == gone[399] == 800


def test_the_smallest_values_go_first_and_zeros_may_grow_back():
    weight = torch.arange(1.0, 11.0).view(5, 2)
    table = ThinningTable(TableShape(5, 2), weight, torch.ones(5), kept=4)
    table.thin(0.5)
    assert table.table.weight.detach().flatten().tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 9, 10]
    with torch.no_grad():
        table.table.weight[0, 0] = 99.0
    stored = table.stored()
    assert stored.dequantise().flatten().tolist() == [99, 0, 0, 0, 0, 0, 0, 8, 9, 10]


def test_room_left_after_the_rows_that_were_read_is_filled_with_the_largest_others():
    counts, weight = torch.tensor([5] * 4 + [0] * 16), torch.randn(20, 3)
    table = ThinningTable(TableShape(20, 3), weight, counts, kept=30)
    for progress in (0.2, 0.5, 0.9):
        table.thin(progress)
        assert int((table.table.weight != 0).sum()) == 60 - round(30 * progress)
    dense = table.stored().dequantise()
    assert int((dense != 0).sum()) == table.stored().kept == 30
    assert torch.equal(dense[:4], weight[:4])
    assert float(dense[4:][dense[4:] != 0].abs().min()) > float(weight[4:][dense[4:] == 0].abs().max())


def test_scores_are_those_of_the_stored_table_after_every_step():
    table, ids = ThinningTable(TableShape(50, 4), torch.randn(50, 4), torch.arange(50), kept=60), torch.arange(50)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.5, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        (table.train()(ids) * torch.randn(50, 4)).sum().backward()
        optimizer.step()
        table.thin(0.5)
        seen = table.eval()(ids).detach()
        assert int((seen != 0).sum()) <= 60
        assert torch.equal(seen, copy.deepcopy(table).stored().dequantise())
        # training still sees and moves all values that are left
        assert torch.equal(table.train()(ids), table.table.weight)


def test_rows_never_read_go_first_and_rarely_read_ones_before_their_size():
    weight = torch.tensor([[9.0, 9.0], [3.0, 0.1], [1.0, 2.0], [1.5, 0.2]])
    table = ThinningTable(TableShape(4, 2), weight, torch.tensor([0, 1, 10, 90]), kept=3)
    # sizes by evidence: 0 0, 0.27 0.01, 0.5 1, 1.35 0.18
    assert table.stored().dequantise().tolist() == [[0, 0], [0, 0], [1, 2], [1.5, 0]]


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_share_counts_columns_and_row_starts(share):
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([DeepLightTables(share=share)]).apply(model, task)
    assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    assert ledger[0].findings["tables"]["items"]["kept"] >= result.items.kept
    assert_tables_learned(result, task)
