from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import BudgetError
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.mixed_bits import MixedBitsTables, best_step, field_groups, quantised
from lessen.methods.sites import module_bytes
from lessen.recipe import Recipe
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask


def test_groups_never_cross_fields():
    shape = TableShape(30, 4, segments=[("a", 1, 9), ("b", 10, 20)])
    group = field_groups(shape, torch.arange(30), 3)
    assert group.tolist() == [0] + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 7 + [5] * 7 + [6] * 6


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_step_beats_the_plain_range(bits):
    rows, weights = torch.randn(500, 6), torch.rand(500).double()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def error(step):
        rounded = (rows / step).round().clamp(low, high) * step
        return float((weights * (rounded - rows).square().sum(dim=1)).sum())

    assert error(best_step(rows, weights, bits)) <= error(rows.abs().max() / high)


def test_error_falls_with_bytes_and_frequent_rows_get_more():
    table, counts = nn.Embedding(600, 8), torch.arange(600) ** 2
    errors = []
    for target in (1500, 3000, 4500):
        made = quantised(table, counts, 16, target)
        assert module_bytes(made) == pytest.approx(target, rel=0.03)
        error = (made.dequantise() - table.weight.detach()).square().sum(dim=1)
        errors.append(float((error * counts).sum()))
        assert error[:100].mean() > error[-100:].mean()
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("share", [0.2, 0.1])
def test_a_share_is_met(share):
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([MixedBitsTables(share=share)]).apply(model, task)
    assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
    assert ledger[0].findings["share"] == pytest.approx(share, rel=0.02)
    assert task.score(result) > task.score(model) - 0.05
    with pytest.raises(BudgetError, match="nearest"):
        Recipe([MixedBitsTables(share=0.9)]).apply(model, task)
