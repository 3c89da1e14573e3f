from __future__ import annotations

import pytest
import torch
from torch import nn

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.robe import RobeTables
from lessen.methods.embeddings.tensor_train import LARGEST_STEP, CoreTraining, TensorTrainTables
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.tensor_train import TensorTrainEmbedding
from lessen.testing.toys import TableTask
from lessen.train.settings import FitSettings


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
    assert_tables_learned(result, task)


def test_tensor_train_is_tiny_and_trains():
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([TensorTrainTables(rank=4)]).apply(model, task)
    assert table_bytes(result) < 0.05 * 2700 * 48
    assert ledger[0].findings["tables"]["items"]["rank"] == 4
    assert_tables_learned(result, task)


def train(rows=60, dim=8, rank=3):
    made = TensorTrainEmbedding(TableShape(rows, dim), [], rank)
    made.reset(0.1, torch.Generator().manual_seed(0))
    return made


def test_squared_norm_is_that_of_all_rows():
    made = train()
    p1, p2, p3 = made.digits
    rows = made.rows(torch.arange(p1 * p2 * p3))
    assert rows.shape == (p1 * p2 * p3, 8)
    assert made.squared_norm().item() == pytest.approx(rows.square().sum().item(), rel=1e-5)


def test_the_penalty_is_that_of_the_vectors_and_moves_of_cores_are_bounded():
    made = train()
    hook = CoreTraining(FitSettings(learning_rate=0.5, table_l2=0.2))
    hook.start(nn.Sequential(made))
    zero = torch.zeros(())
    assert hook.loss(made, None, zero).item() == pytest.approx(0.1 * made.squared_norm().item(), rel=1e-6)
    before = made.middle.weight.detach().clone()
    hook.before_step(made, 1)
    with torch.no_grad():
        made.middle.weight.sub_(0.5 * torch.sign(before))
    hook.after_step(made, 1)
    moved = made.middle.weight.detach() - before
    assert torch.allclose(moved, -LARGEST_STEP * before.square().mean().sqrt() * torch.sign(before), rtol=1e-3)
    assert CoreTraining(FitSettings(table_l2=0.0)).loss(made, None, zero) is zero
