from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import NonFiniteError, NothingMatchedError
from lessen.methods.calibration import Moments, principal_axes, recalibrate_batch_norm
from lessen.methods.weights.low_rank import LowRankLinears, factorise, pays
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


def streamed(rows, pieces=5):
    moments = Moments(rows.shape[1])
    for piece in rows.chunk(pieces):
        moments.add(piece)
    return moments


def test_streamed_moments_keep_small_variances_beside_a_large_mean():
    rows = 1e6 + torch.randn(1000, 4) * torch.tensor([1.0, 1.0, 1.0, 0.5])
    moments = streamed(rows)
    assert torch.allclose(moments.covariance, torch.cov(rows.double().t(), correction=0), rtol=1e-6)
    with pytest.raises(NonFiniteError, match="calibration"):
        moments.add(torch.tensor([[1.0, float("nan"), 0.0, 0.0]]))


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_error_is_the_tail_and_full_rank_is_exact(rank):
    layer, inputs = nn.Linear(20, 12), torch.randn(500, 20) @ torch.randn(20, 20)
    with torch.no_grad():
        outputs = layer(inputs)
        moments = streamed(outputs)
        variances, axes = principal_axes(moments.covariance)
        error = (factorise(layer, axes[:, :rank], moments.mean)(inputs) - outputs).double().square().sum(1).mean()
    assert float(error) == pytest.approx(float(variances[rank:].sum()), rel=1e-3, abs=1e-6)


def test_it_beats_the_svd_of_the_weight_on_its_own_data():
    torch.manual_seed(0)
    inputs = torch.relu(torch.randn(2000, 8) @ torch.randn(8, 64))
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        outputs = layer(inputs)
        moments = streamed(outputs)
        _, axes = principal_axes(moments.covariance)
        own = (factorise(layer, axes[:, :6], moments.mean)(inputs) - outputs).norm()
        left, values, right = torch.linalg.svd(layer.weight)
        svd = inputs @ ((left[:, :6] * values[:6]) @ right[:6]).t() + layer.bias
    assert float(own) < 0.7 * float((svd - outputs).norm())


def test_only_layers_that_get_smaller_are_split():
    assert pays(nn.Linear(400, 400), 64)
    assert not pays(nn.Linear(400, 400), 200)
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([LowRankLinears(rank=8)]).apply(model, task)
    assert type(result.second).__name__ == "LowRankLinear"
    assert isinstance(result.last, nn.Linear)
    assert "no smaller" in ledger[0].findings["skipped"]["last"]
    with pytest.raises(NothingMatchedError, match="no smaller"):
        Recipe([LowRankLinears(rank=60)]).apply(model, task)


def test_batch_norm_statistics_follow_the_new_layers():
    task = TableTask()
    norm = nn.BatchNorm1d(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = task.build(), norm

        def forward(self, items, tags):
            return self.norm(self.inner(items, tags).unsqueeze(1))[:, 0]

    model = Net()
    assert recalibrate_batch_norm(model, task, None) == 1
    with torch.no_grad():
        outputs = torch.cat([model.inner(*inputs) for inputs, _ in task.batches("train")])
    assert float(norm.running_mean) == pytest.approx(float(outputs.mean()), abs=1e-4)
    assert norm.momentum == 0.1
    assert not norm.training


def test_nan_in_the_data_is_refused_with_the_batch():
    class Broken(TableTask):
        scale = 1.0

        def batches(self, split, seed=0):
            for number, batch in enumerate(super().batches(split, seed)):
                self.scale = float("nan") if split == "train" and number == 2 else 1.0
                yield batch

        def forward(self, model, batch):
            handle = model.first.register_forward_pre_hook(lambda _m, inputs: (inputs[0] * self.scale,))
            try:
                return super().forward(model, batch)
            finally:
                handle.remove()

    model = TableTask().reference(0)
    with pytest.raises(NonFiniteError, match="train batch 3 of task"):
        Recipe([LowRankLinears(rank=8)]).apply(model, Broken())
