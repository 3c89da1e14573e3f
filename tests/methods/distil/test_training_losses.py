"""Bias loss, rotations without labels, and features that are kept."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import ConfigError, TaskError
from lessen.method import Context
from lessen.methods.distil._shared.distilled import probe
from lessen.methods.distil.bias_loss import BiasLoss, Extent, spread, weights
from lessen.methods.distil.rotnet import RotNet, turned
from lessen.methods.distil.unit import UNIT, Decoder, feature_distance, other_domain, rows_of
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.tasks.vision.shapes import ShapesNet, ShapesOptions, ShapesTask
from lessen.testing.toys import TableTask


@pytest.fixture(scope="module")
def task() -> Task:
    plain = ShapesTask(ShapesOptions(examples=160))
    return plain.view(settings=replace(plain.settings, epochs=2, patience=None))


# -- bias loss -----------------------------------------------------------------------------------------------------
def test_the_weights_are_those_of_a_loop() -> None:
    maps = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 6).view(5, 1, 1, 1)
    variances = spread(maps)
    values = [float(torch.tensor(row.flatten().tolist()).var()) for row in maps]
    assert variances.tolist() == pytest.approx(values, rel=1e-5)
    extent = Extent()
    low, width = extent(variances, "local")
    found = weights(variances, low, width, 0.3, 0.3)
    for value, one in zip(values, found.tolist(), strict=True):
        u = (value - min(values)) / (max(values) - min(values))
        assert one == pytest.approx(math.exp(0.3 * u) - 0.3, rel=1e-5)
    assert float(found.min()) == pytest.approx(0.7, abs=1e-6)
    assert float(found.max()) == pytest.approx(math.exp(0.3) - 0.3, abs=1e-6)
    assert not spread(maps.requires_grad_()).requires_grad
    with pytest.raises(TaskError, match=r"bias-loss reads maps .* gives \(4, 8\)"):
        spread(torch.zeros(4, 8))


def test_the_least_of_all_batches_is_remembered() -> None:
    extent = Extent()
    extent(torch.tensor([1.0, 3.0]), "global")
    low, width = extent(torch.tensor([2.0, 4.0]), "global")
    assert (float(low), float(width)) == (1.0, 2.0)
    u = (torch.tensor([2.0, 4.0]) - low) / width
    assert u.tolist() == [0.5, 1.5]  # as published: beyond 1
    low, width = extent(torch.tensor([2.0, 4.0]), "average")
    assert 1.0 < float(low) < 2.0
    assert 1.9 < float(width) < 2.1


def test_equal_variances_weigh_alike_and_are_finite() -> None:
    low, width = Extent()(torch.ones(4), "local")
    assert weights(torch.ones(4), low, width, 0.3, 0.3).tolist() == pytest.approx([0.7] * 4)


def test_at_its_limits_it_is_the_tasks_training(task: Task) -> None:
    model = ShapesNet()
    plain = copy.deepcopy(model)
    with torch.random.fork_rng():
        task.train(plain, seed=0)
    found, (step,) = Recipe([BiasLoss(alpha=0.0, beta=0.0)]).apply(model, task)
    assert step.findings["layer"] == "deep"
    for a, b in zip(plain.parameters(), found.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for how in ("global", "local", "average"):
        other, _ = Recipe([BiasLoss(range=how)]).apply(model, task)
        assert not torch.equal(other.head.weight, found.head.weight)
        control, _ = Recipe([BiasLoss(range=how, control=True)]).apply(model, task)
        assert not torch.equal(control.head.weight, other.head.weight)


def test_bias_loss_without_classes_or_maps_is_one_line(task: Task) -> None:
    with pytest.raises(TaskError, match=r"bias-loss reads maps"):
        BiasLoss(layer="hidden").apply(ShapesNet(), task, Context())
    one = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, 1))
    with pytest.raises(TaskError, match=r"bias-loss needs logits of classes, .* found \(64, 1\)"):
        BiasLoss().apply(one, task.view(loss=lambda model, batch: task.forward(model, batch).mean()), Context())


# -- rotations -----------------------------------------------------------------------------------------------------
def test_turns_are_exact_and_stand_together() -> None:
    picture = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    copies, turns = turned(torch.cat([picture, 10 * picture]))
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert copies[2, 0].tolist() == [[2, 4], [1, 3]]  # counter-clockwise
    assert copies[4, 0].tolist() == [[4, 3], [2, 1]]
    assert torch.equal(torch.rot90(copies[2], 1, dims=(1, 2)), copies[4])
    assert torch.equal(torch.rot90(copies[6], 1, dims=(1, 2)), copies[0])
    for place in range(8):
        assert copies[place].flatten().sort().values.tolist() == copies[place % 2].flatten().sort().values.tolist()


class Arrows(Task):
    """Pictures with a bright upper half: they have an up."""

    name = "arrows"
    metrics = ShapesTask.metrics
    settings = ShapesTask.settings

    def build(self) -> nn.Module:
        return ShapesNet()

    def batches(self, split, seed=0):
        generator = torch.Generator().manual_seed(seed + len(split))
        for _ in range(4):
            x = 0.5 * torch.randn(32, 1, 16, 16, generator=generator)
            x[:, :, :8] += 1
            yield x, torch.randint(0, 4, (32,), generator=generator)

    def loss(self, model: nn.Module, batch) -> Tensor:
        return F.cross_entropy(self.forward(model, batch), batch[1])


def test_turns_are_learned_and_the_head_stays() -> None:
    model = ShapesNet()
    found, (step,) = Recipe([RotNet(epochs=3)]).apply(model, Arrows())
    assert step.findings["turns told right"] > 0.6
    assert found.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(found.head.weight, model.head.weight)
    assert not torch.equal(found.deep.weight, model.deep.weight)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in found.modules())


def test_what_is_no_square_picture_is_not_turned(task: Task) -> None:
    with pytest.raises(TaskError, match=r"rotnet turns square pictures .* task 'contract-tables' gives none"):
        RotNet().apply(TableTask().build(), TableTask(), Context())
    wide = task.view(inputs=lambda batch: batch[0][:, :, :8])
    with pytest.raises(TaskError, match=r"rotnet turns square pictures"):
        RotNet().apply(ShapesNet(), wide, Context())


# -- features that are kept ----------------------------------------------------------------------------------------
def test_the_distance_is_that_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, generator=generator) for _ in range(2))
    expected = 0.0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        dot = sum(i * j for i, j in zip(x, y, strict=True))
        cosine = dot / math.hypot(*x) / math.hypot(*y)
        expected += (1 - cosine + 0.5 * sum(abs(i - j) for i, j in zip(x, y, strict=True)) / 3) / 4
    assert float(feature_distance(a, b, 0.5)) == pytest.approx(expected, rel=1e-5)
    assert float(feature_distance(3 * a, a, 0.0)) == pytest.approx(0, abs=1e-6)
    assert float(feature_distance(3 * a, a, 1.0)) > 0.1
    assert float(feature_distance(a, a, 1.0)) == pytest.approx(0, abs=1e-6)
    assert rows_of(torch.zeros(2, 5, 3, 3)).shape == (18, 5)
    assert rows_of(torch.zeros(2, 7, 5)).shape == (14, 5)
    maps = torch.arange(8.0).view(1, 2, 2, 2)
    assert rows_of(maps)[1].tolist() == [1, 5]


def test_old_features_are_kept_better_than_without() -> None:
    options = ShapesOptions(examples=320, style="faded", pretrained="filled")
    task = ShapesTask(options)
    task = task.view(settings=replace(task.settings, learning_rate=1e-2, patience=None, keep="last"))
    original = task.reference(0)
    old = other_domain(task, {"style": "filled", "pretrained": None})
    batch = next(iter(old.batches("test")))
    before = probe(original, ("head:input",), old, batch)["head:input"]
    drift = {}
    for weight in (0.0, 20.0):
        found, (step,) = Recipe([UNIT(weight=weight, old={"style": "filled", "pretrained": None}, epochs=5)]).apply(
            original, task
        )
        after = probe(found, ("head:input",), old, batch)["head:input"]
        drift[weight] = float((after - before).square().mean())
        assert set(step.findings["old domain"]) == {"before", "after"}
        assert found.state_dict().keys() == original.state_dict().keys()
    assert drift[20.0] < 0.8 * drift[0.0]


def test_an_untouched_network_has_no_distance() -> None:
    features = torch.randn(6, 4)
    assert float(feature_distance(Decoder(4)(features), features, 1.0).detach()) == pytest.approx(0, abs=1e-6)


def test_without_old_data_the_tasks_own_are_read_and_wrong_options_are_named(task: Task) -> None:
    found, (step,) = Recipe([UNIT(epochs=1)]).apply(ShapesNet(), task)
    assert "old domain" not in step.findings
    assert isinstance(found, ShapesNet)
    with pytest.raises(ConfigError, match=r"unit: old = .* changes options that task 'shapes' lacks; it has style"):
        UNIT(old={"stile": "filled"}).apply(ShapesNet(), task, Context())
