"""CWD: where in the picture each channel is active, as in the teacher."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.stages import find_stages
from lessen.errors import TaskError
from lessen.method import Card
from lessen.methods.distil._shared.compared import ComparedFeatures
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Scene, probe
from lessen.methods.distil._shared.exits import grid_of
from lessen.methods.distil._shared.features import Regressor, matched
from lessen.methods.distil._shared.losses import channel_divergence
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device
from lessen.train.taps import Outputs
from lessen.train.teachers import DistilHook, evaluating


class CWD(ComparedFeatures):
    """Add tau^2 / C times the divergence, of each of C channels, between the two softmaxes over its cells.

    Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021 (arXiv 2011.13256), made for segmentation;
    maps of classifiers are compared here the same way. A 1 x 1 map brings the student's channels to the teacher's
    number and is thrown away. Differences: unless `layer` and `teacher_layer` name others, the exits of the last
    stages are compared; maps of different size are averaged down to the smaller; tokens on a square grid are maps,
    class tokens left out.
    """

    card = Card(
        name="cwd",
        family="distil",
        summary="Train a model so that each channel is active where the teacher's is.",
        acts_on=ACTS_ON,
        source="ICCV 2021, arXiv 2011.13256",
        needs=NEEDS,
        claims=CLAIMS,
    )
    weight: float = Field(50.0, ge=0, le=1e6, description="factor on the teacher's term")
    temperature: float = Field(4.0, gt=0, le=1000, description="tau, divides the activations of both")

    def student_taps(self, student: nn.Module, task: Task, batch: Any) -> tuple[str, ...]:
        """Return the student's layer. Raises InputError when none is named and no stage is found."""
        return (self.layer or last_stage(student, task, batch),)

    def teacher_taps(self, master: nn.Module, task: Task, batch: Any) -> tuple[str, ...]:
        """Return the teacher's layer. Raises InputError when none is named and no stage is found."""
        return (self.teacher_layer or last_stage(master, task, batch),)

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of one layer each."""
        return _Channels(scene, self)


def last_stage(model: nn.Module, task: Task, batch: Any) -> str:
    """Return the path of the last stage's exit. Raises InputError when none is found."""
    with evaluating(model):
        return find_stages(model, lambda one: task.forward(one, to_device(batch, device_of(one))))[-1]


def maps_of(features: Tensor) -> Tensor:
    """Return features as maps [B, C, H, W]; tokens [B, N, C] on a square grid become some.

    Raises:
        TaskError: features without places.
    """
    if features.ndim == 4:
        return features
    side, leading = grid_of(features.shape[1]) if features.ndim == 3 else (0, 0)
    if not side:
        raise TaskError(
            f"cwd compares places, and a layer gives features of shape {tuple(features.shape)}; name layers that give "
            "maps [rows, channels, height, width] or a square grid of tokens"
        )
    return features[:, leading:].transpose(1, 2).reshape(len(features), -1, side, side)


class _Channels(DistilHook):
    def __init__(self, scene: Scene, method: CWD) -> None:
        super().__init__(scene.teacher, main_tensor, scene.taps)
        self.scene, self.method = scene, method

    def start(self, model: nn.Module) -> None:
        """Make the map for the shapes that one batch shows, and watch the student."""
        scene = self.scene
        own = probe(model, self.taps, scene.task, scene.batch)[self.taps[0]]
        wanted = self.teacher.ask(scene.batch)[self.teacher.taps[0]]
        self.module = Regressor(*matched(maps_of(own).float(), maps_of(wanted).float()))
        super().start(model)

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:  # noqa: ARG002
        """Return both terms, weighted."""
        assert self.module is not None
        own, wanted = matched(maps_of(student[self.taps[0]]), maps_of(teacher[self.teacher.taps[0]]))
        term = channel_divergence(self.module(own), wanted, self.method.temperature)
        return self.method.task_weight * loss + self.method.weight * term
