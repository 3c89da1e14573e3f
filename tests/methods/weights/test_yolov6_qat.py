"""Training under int8 rounding: what trains is what is stored, the teacher's terms, and what recovers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.artifact import folder as artifact
from lessen.errors import NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.weights.static_int8 import StaticInt8Layers
from lessen.methods.weights.yolov6_qat import Rounding, YOLOv6QAT, faded
from lessen.recipe import Recipe
from lessen.stored.linears.static_int8 import StaticInt8Conv, StaticInt8Linear
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.train.settings import FitSettings
from toy import ToyNet, ToyTask


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 7), (5, 12)), (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, stride=2, groups=4, bias=False), (2, 4, 7, 7)), (nn.Conv1d(3, 5, 3), (2, 3, 9)),
    ],
    ids=str,
)  # fmt: skip
def test_what_trains_computes_what_is_stored(layer, shape):
    rounding = Rounding(layer, -0.7, 2.1)
    inputs = torch.randn(*shape) * 2  # beyond the range at both ends
    with torch.no_grad():
        found, stored = rounding(inputs), rounding.stored()(inputs)
    assert torch.allclose(found, stored, atol=1e-5 * float(found.abs().max()))
    inputs.requires_grad_()
    rounding(inputs).sum().backward()
    inside = (inputs > -0.7) & (inputs < 2.1)
    assert bool((inputs.grad[~inside] == 0).all())
    assert layer.weight.grad is not None


def test_the_teacher_fades_from_all_to_a_hundredth():
    assert faded(0, 10) == 1.0
    assert faded(10, 10) == pytest.approx(0.01)
    assert faded(5, 10) == pytest.approx(0.505)


def test_training_under_rounding_recovers_and_is_stored_as_integers(tmp_path):
    task = ShapesTask(ShapesOptions(examples=320)).view(
        settings=FitSettings(epochs=8, learning_rate=6e-3, patience=None)
    )
    model = task.reference()
    with torch.no_grad():
        for layer in (model.wide, model.deep):  # ranges as merged branches have them: one channel far beyond the rest
            layer.weight[0] *= 60
            layer.bias[0] *= 60
        model.deep.weight[:, 0] /= 60
        model.hidden.weight.view(64, 16, 16)[:, 0] /= 60
    before = task.score(model, "test")
    assert before > 0.45  # of four classes
    rounded, _ = Recipe([StaticInt8Layers(weights="tensor")]).apply(model, task)
    made, records = Recipe([YOLOv6QAT(epochs=4, learning_rate=1e-3)]).apply(model, task)
    assert records[0].findings["maps"] == ["wide", "deep"]
    assert isinstance(made.deep, StaticInt8Conv)
    assert isinstance(made.hidden, StaticInt8Linear)
    assert task.score(made, "test") > max(before - 0.06, task.score(rounded, "test"))
    artifact.save(tmp_path / "a", made, model)
    loaded = artifact.load(tmp_path / "a", model=task.build())
    given = task.example_batch()[0]
    assert torch.equal(loaded(given), made(given))


def test_a_network_without_maps_learns_from_answers():
    task = ToyTask(examples=200)
    made, records = Recipe([YOLOv6QAT(epochs=1)]).apply(ToyNet(), task)
    assert records[0].findings["maps"] == []
    assert any(isinstance(module, StaticInt8Linear) for module in made.modules())


def test_what_cannot_be_done_is_said():
    with pytest.raises(NothingMatchedError, match="yolov6-qat"):
        YOLOv6QAT().apply(nn.Sequential(nn.ReLU()), ToyTask(examples=50), Context())
    frozen = ToyTask(examples=50).view(withheld=frozenset({"training"}))
    with pytest.raises(TaskError, match="training"):
        Recipe([YOLOv6QAT()]).apply(ToyNet(), frozen)
