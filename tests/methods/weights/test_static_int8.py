"""Static int8: the arithmetic of its levels, batch norms folded, convolutions and linear layers of every kind of host."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.artifact import folder as artifact
from lessen.errors import NonFiniteError, NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.weights._shared.folded_norms import fold_batch_norms
from lessen.methods.weights._shared.ranges import input_ranges
from lessen.methods.weights.static_int8 import StaticInt8Layers, empty_form
from lessen.stored.linears.static_int8 import StaticInt8Conv, StaticInt8Linear
from lessen.task import Task


class Net(nn.Sequential):
    """Convolution, depthwise convolution with channels of very different size, pointwise, linear."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 3, padding="same", groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 24, 1),
            nn.BatchNorm2d(24, affine=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 10),
        )


class Pictures(Task):
    name = "pictures"
    metrics = {}

    def build(self):
        return net()

    def batches(self, split, seed=0):
        draw = torch.Generator().manual_seed(0 if split == "train" else 1)
        return [(torch.randn(8, 3, 16, 16, generator=draw), torch.zeros(8)) for _ in range(3)]


def net():
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 4)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    model[3].weight.data *= torch.logspace(-1, 1, 16).view(-1, 1, 1, 1)
    return model.eval()


def error(made, task=None):
    task = task or Pictures()
    with torch.no_grad():
        wanted = torch.cat([net()(batch[0]) for batch in task.batches("test")])
        found = torch.cat([made(batch[0]) for batch in task.batches("test")])
    return float((found - wanted).norm() / wanted.norm())


def test_folded_batch_norms_change_nothing():
    made, folded = fold_batch_norms(net(), Pictures())
    assert folded == ["1", "4", "7"]
    assert error(made) < 1e-5
    assert not [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    alone = nn.Sequential(nn.Linear(4, 4))
    assert fold_batch_norms(alone, Pictures()) == (alone, [])


@pytest.mark.parametrize("layer", [nn.Linear(12, 5), nn.Linear(12, 5, bias=False), nn.Conv2d(4, 6, 3, 2, 1, groups=2),
                                   nn.Conv1d(4, 6, 3, padding="same", dilation=2), nn.Conv3d(2, 3, 2)])  # fmt: skip
def test_outputs_are_those_of_the_dequantised_weight_on_inputs_of_the_grid(layer):
    made = empty_form(layer)
    made.fill(layer, True, -1.5, 2.5)
    sides = {nn.Conv2d: (7, 7), nn.Conv1d: (9,), nn.Conv3d: (4, 4, 4)}.get(type(layer), ())
    x = torch.randn(3, layer.weight.shape[1] * getattr(layer, "groups", 1), *sides) * 2
    step, zero = made.step, made.zero
    grid = (torch.round(x / step) + zero).clamp(-128, 127)
    rounded = (grid - zero) * step
    assert float(rounded.min()) >= -1.51
    assert float(rounded.max()) <= 2.51
    dense = copy.deepcopy(layer)
    dense.weight.data = made.dequantise()
    with torch.no_grad():
        assert torch.allclose(made(x), dense(rounded), atol=1e-5)
        assert bool(((made.dequantise() - layer.weight).abs().flatten(1).amax(1) <= made.scales * 0.5001).all())
    zeros = torch.zeros_like(x)
    with torch.no_grad():  # zero is a level, so that padding is exact
        assert torch.equal(made.levels(zeros), zeros)


def test_each_channel_has_its_own_scale_and_that_matters_for_depthwise_layers():
    errors = {}
    for weights in ("channel", "tensor"):
        made = StaticInt8Layers(weights=weights).apply(net(), Pictures(), Context())
        assert sum(isinstance(m, StaticInt8Conv) for m in made.modules()) == 3
        assert sum(isinstance(m, StaticInt8Linear) for m in made.modules()) == 1
        errors[weights] = error(made)
    assert errors["channel"] < 0.05
    assert errors["channel"] < 0.7 * errors["tensor"]


def test_ranges_hold_all_inputs_or_leave_the_rare_ones_out():
    task = Pictures()
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    sites = StaticInt8Layers(min_weights=1).candidates(model, (nn.Linear,), Context())
    every = torch.cat([batch[0].flatten() for batch in task.batches("train")])
    found = {how: input_ranges(model, task, sites, 3, how, 99.0)[0] for how in ("minmax", "percentile", "mse")}
    assert found["minmax"] == pytest.approx((float(every.min()), float(every.max())))
    low, high = found["percentile"]
    assert float((every > high).float().mean()) == pytest.approx(0.01, abs=0.003)
    assert float((every < low).float().mean()) == pytest.approx(0.01, abs=0.003)

    def squared(ends):
        step = (ends[1] - ends[0]) / 255
        return float((every.clamp(*ends).div(step).round() * step - every).square().sum())

    assert squared(found["mse"]) <= squared(found["minmax"]) * 1.001


def test_an_artifact_brings_folded_and_rounded_layers_back(tmp_path):
    made = StaticInt8Layers(ranges="mse").apply(net(), Pictures(), Context())
    artifact.save(tmp_path / "made", made, net())
    loaded = artifact.load(tmp_path / "made", net())
    x = Pictures().batches("test")[0][0]
    with torch.no_grad():
        assert torch.equal(loaded(x), made(x))


@pytest.mark.parametrize("name", ["minilm", "vit", "gpt2", "clip"])
def test_towers_and_conv1d_go_through_the_same_method(name):
    before, context = answer(host(name), inputs(name)), Context()
    made = StaticInt8Layers().apply(host(name), Host(name), context)
    after = answer(made, inputs(name))
    assert float((after - before).norm() / before.norm()) < 0.1
    assert any(isinstance(m, StaticInt8Linear) for m in made.modules())
    if name in ("vit", "clip"):  # their forward asks the patch convolution's weight for its type
        assert any("reads its weight directly" in why for why in context.findings["skipped"].values())


def test_what_cannot_be_done_is_one_line():
    class Empty(Pictures):
        def batches(self, split, seed=0):
            return [] if split == "train" else super().batches(split)

    class Broken(Pictures):
        def batches(self, split, seed=0):
            return [(batch[0] * float("nan"), batch[1]) for batch in super().batches(split)]

    with pytest.raises(TaskError, match="empty train split"):
        StaticInt8Layers().apply(net(), Empty(), Context())
    with pytest.raises(NonFiniteError, match="was given NaN or infinity"):
        StaticInt8Layers(fold_norms=False).apply(net(), Broken(), Context())
    circular = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"))
    with pytest.raises(NothingMatchedError, match="pads with circular, not with zeros"):
        StaticInt8Layers().apply(circular, Pictures(), Context())


def test_a_dead_layer_and_one_that_is_never_called():
    model, context = net(), Context()
    model[6].weight.data.zero_()
    made = StaticInt8Layers(fold_norms=False).apply(model, Pictures(), context)
    assert not bool(made[6].dequantise().any())
    with torch.no_grad():
        assert bool(torch.isfinite(made(Pictures().batches("test")[0][0])).all())

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 8, 3), nn.Linear(32, 32)

        def forward(self, x):
            return functional.relu(self.used(x))

    made = StaticInt8Layers().apply(Half(), Pictures(), context)
    assert type(made.idle) is nn.Linear
    assert context.findings["skipped"]["idle"] == "calibration ran nothing through it"
