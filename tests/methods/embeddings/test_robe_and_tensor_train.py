from __future__ import annotations

import pytest

from lessen.methods.embeddings.budget import table_bytes
from lessen.methods.embeddings.robe import RobeTables
from lessen.methods.embeddings.tensor_train import TensorTrainTables
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_robe_meets_any_share(share):
    task = TableTask()
    result, ledger = Recipe([RobeTables(share=share)]).apply(task.reference(0), task)
    assert table_bytes(result) == pytest.approx(share * 2700 * 48, rel=0.02)
    assert ledger[0].findings["tables"]["items"]["block"] == 12


def test_block_is_cut_to_a_divisor_of_the_width():
    task = TableTask()
    result, _ = Recipe([RobeTables(ratio=0.2, block=5)]).apply(task.reference(0), task)
    assert result.items.block == 4
    assert len(result.items.memory) == round(0.2 * 1500 * 12)
    assert task.score(result, "train") > 0.6


def test_tensor_train_is_tiny_and_trains():
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([TensorTrainTables(rank=4)]).apply(model, task)
    assert table_bytes(result) < 0.05 * 2700 * 48
    assert ledger[0].findings["tables"]["items"]["rank"] == 4
    assert task.score(result, "train") > 0.6
