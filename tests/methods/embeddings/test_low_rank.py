from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lessen.errors import TaskError
from lessen.methods.embeddings.low_rank import LowRankTables, weighted_axes
from lessen.recipe import Recipe
from lessen.stored.fields import FieldEmbedding, Segment
from lessen.testing.toys import TableTask


def test_moments_from_counts_are_those_of_streamed_lookups():
    rows = torch.randn(30, 5, dtype=torch.float64)
    counts = torch.randint(0, 9, (30,))
    part = weighted_axes(rows, counts)
    streamed = torch.repeat_interleave(rows, counts, dim=0)
    assert torch.allclose(part.mean, streamed.mean(0))
    expected = np.linalg.eigvalsh(np.cov(streamed.numpy().T, bias=True))[::-1]
    assert np.allclose(part.variances.numpy(), expected)
    assert torch.allclose(part.axes.t() @ part.axes, torch.eye(5, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_weighted_error_is_the_tail_of_the_variances(rank):
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([LowRankTables(rank=rank)]).apply(model, task)
    counts = torch.bincount(task.items[:1024], minlength=1500)
    weight = model.items.weight.detach().double()
    part = weighted_axes(weight, counts)
    shares = counts.double() / counts.sum()
    error = float(shares @ (result.items.dequantise().double() - weight).square().sum(1))
    tail = float(part.variances[rank:].sum())
    assert error == pytest.approx(tail, rel=1e-3, abs=1e-9)
    assert ledger[0].findings["tables"]["items"]["rank"] == rank


def test_rank_follows_the_energy_and_fields_have_their_own_axes():
    class Fields(TableTask):
        def build(self):
            model = super().build()
            table = FieldEmbedding([Segment("a", 1, 700), Segment("b", 701, 799)], 12)
            with torch.no_grad():
                table.weight.zero_()
                table.weight[1:701, :2] = torch.randn(700, 2)
                table.weight[701:, 5:7] = torch.randn(799, 2)
            model.items = table
            return model

    task = Fields()
    model = task.build()
    result, ledger = Recipe([LowRankTables(energy=0.999)]).apply(model, task)
    assert ledger[0].findings["tables"]["items"]["rank"] == 2
    assert torch.allclose(result.items.dequantise(), model.items.weight, atol=1e-5)


def test_fine_tuning_needs_a_task_that_trains():
    task = TableTask()
    model = task.reference(0)
    tuned, ledger = Recipe([LowRankTables(rank=2, fine_tune_epochs=1)]).apply(model, task)
    assert ledger[0].train_seconds > 0
    assert tuned.items.decoder.requires_grad
    task.provides = frozenset({"calibration"})
    with pytest.raises(TaskError, match="cannot train"):
        Recipe([LowRankTables(rank=2, fine_tune_epochs=1)]).apply(model, task)


def test_a_table_with_a_used_padding_row_is_left_alone():
    task = TableTask()
    model = task.reference(0)
    with torch.no_grad():
        model.items.weight[0] = 1.0
    result, ledger = Recipe([LowRankTables(rank=2)]).apply(model, task)
    assert isinstance(result.items, nn.Embedding)
    assert "padding" in ledger[0].findings["skipped"]["items"]
