"""FitNet: a layer of the student, mapped linearly, learns a layer of the teacher."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card
from lessen.methods.distil._shared.compared import ComparedFeatures
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Scene, probe
from lessen.methods.distil._shared.features import Regressor, matched
from lessen.task import Task, main_tensor
from lessen.train.taps import Outputs
from lessen.train.teachers import DistilHook, Teacher


class FitNet(ComparedFeatures):
    """Add the mean squared distance between a linear map of the student's features and the teacher's.

    FitNets, ICLR 2015 (arXiv 1412.6550). Differences: hint and task are learned together, where the paper trains the
    hint first, as later comparisons do (with the factor 100); the map is 1 x 1 instead of a convolution that shrinks,
    and where sizes differ the larger map is averaged down. The map is thrown away after training.
    """

    card = Card(
        name="fitnet",
        family="distil",
        summary="Train a model so that one of its layers, mapped linearly, equals a layer of a teacher.",
        acts_on=ACTS_ON,
        source="ICLR 2015, arXiv 1412.6550",
        needs=NEEDS,
        claims=CLAIMS,
    )
    weight: float = Field(100.0, ge=0, le=1e6, description="factor on the teacher's term")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of one layer each."""
        return _Hint(scene.teacher, scene.taps, self, scene.task, scene.batch)


class _Hint(DistilHook):
    def __init__(self, teacher: Teacher, taps: tuple[str, ...], method: FitNet, task: Task, batch: Any) -> None:
        super().__init__(teacher, main_tensor, taps)
        self.method, self.task, self.batch = method, task, batch

    def start(self, model: nn.Module) -> None:
        """Make the map for the shapes that one batch shows, and watch the student."""
        own = probe(model, self.taps, self.task, self.batch)[self.taps[0]]
        wanted = self.teacher.ask(self.batch)[self.teacher.taps[0]]
        self.module = Regressor(*matched(own.float(), wanted.float()))
        super().start(model)

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:  # noqa: ARG002
        """Return both terms, weighted."""
        assert self.module is not None
        own, wanted = matched(student[self.taps[0]], teacher[self.teacher.taps[0]])
        distance = F.mse_loss(self.module(own).float(), wanted.float())
        return self.method.task_weight * loss + self.method.weight * distance
