from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.errors import BudgetError
from lessen.methods.embeddings.lsq import LearnedStepTable, LearnedStepTables, fake_quantise, scaled_gradient
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask


def test_gradients_are_those_of_the_written_rule():
    rows = torch.tensor([[-9.0, -0.6, 0.4, 9.0]], dtype=torch.float64, requires_grad=True)
    step = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    (fake_quantise(rows, step, 2) * upstream).sum().backward()
    assert rows.grad.tolist() == [[0.0, 2.0, 3.0, 0.0]]
    expected = 1 * -2 + 2 * (-1 + 0.6) + 3 * (0 - 0.4) + 4 * 1
    assert float(step.grad) == pytest.approx(expected)


def test_gradient_scale_leaves_the_value_alone():
    value = torch.tensor([3.0], requires_grad=True)
    scaled = scaled_gradient(value, 0.25)
    assert float(scaled.detach()) == 3.0
    scaled.sum().backward()
    assert float(value.grad) == 0.25


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_stored_table_answers_what_training_saw(bits):
    table = LearnedStepTable(TableShape(50, 6, segments=[("a", 0, 20), ("b", 20, 30)]), torch.randn(50, 6), bits)
    ids = torch.arange(50)
    assert torch.allclose(table.stored()(ids), table(ids).detach(), atol=1e-6)


@pytest.mark.parametrize("start", ["given", "fresh"])
def test_bytes_are_exactly_those_of_the_codes(start):
    task = TableTask()
    result, ledger = Recipe([LearnedStepTables(bits=2, start=start)]).apply(task.reference(0), task)
    assert result.items.codes.shape == (1500, 3)
    assert ledger[0].findings["start"] == {"given": "given model", "fresh": "fresh build"}[start]
    assert ledger[0].findings["tables"]["items"]["bytes"] == 1500 * 3 + 4
    assert_tables_learned(result, task)


def test_a_share_between_two_widths_is_refused_with_the_nearest():
    task = TableTask()
    result, _ = Recipe([LearnedStepTables(share=0.125)]).apply(task.reference(0), task)
    assert result.items.bits == 4
    with pytest.raises(BudgetError, match=r"nearest it can reach is 0\.125"):
        Recipe([LearnedStepTables(share=0.15)]).apply(task.reference(0), task)
