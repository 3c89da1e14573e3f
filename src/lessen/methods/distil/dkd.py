"""DKD: knowledge about the target and knowledge among the other classes, weighed apart."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from lessen.errors import TaskError
from lessen.method import Card
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Distilled, Scene
from lessen.methods.distil._shared.losses import check_answers, class_rows, decoupled_divergence
from lessen.task import Task, main_tensor
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import DistilHook, Teacher


class DKD(Distilled):
    """Split the divergence of KD: `alpha` weighs "target or not", `beta` the other classes among themselves.

    Decoupled Knowledge Distillation, CVPR 2022 (arXiv 2203.08679). The second part is weighed in KD by 1 - p, small
    where the teacher is sure; here it is not. Difference: the published code raises the weight linearly over the first
    20 epochs; here it is constant, and the task's warm-up of the learning rate does that. Nothing is left among the
    others where there are two classes, and the first part is KD.
    """

    card = Card(
        name="dkd",
        family="distil",
        summary="Train a model on a teacher's probabilities, the target class and the others weighed apart.",
        acts_on=ACTS_ON,
        source="CVPR 2022, arXiv 2203.08679",
        needs=NEEDS,
        claims=CLAIMS,
    )
    alpha: float = Field(1.0, ge=0, le=1e6, description="factor on the part of the target class")
    beta: float = Field(8.0, ge=0, le=1e6, description="factor on the part of the other classes")
    temperature: float = Field(4.0, gt=0, le=1000, description="divides the logits of both")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of answers."""
        return _Parts(scene.teacher, self, scene.task)


class _Parts(DistilHook):
    def __init__(self, teacher: Teacher, method: DKD, task: Task) -> None:
        super().__init__(teacher, main_tensor)
        self.method, self.task = method, task

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:
        """Return the parts, weighted. Raises TaskError when answers or labels have another form."""
        check_answers(student[OUTPUT], teacher[OUTPUT])
        own, wanted = (class_rows(outputs[OUTPUT], batch) for outputs in (student, teacher))
        target = self.task.target(batch).to(own.device).reshape(-1)
        if len(target) != len(own):
            raise TaskError(f"dkd needs a class for each of {len(own)} rows, the task gives {len(target)}; use kd")
        method = self.method
        first, second = decoupled_divergence(own, wanted, target.long(), method.temperature)
        return method.task_weight * loss + method.weight * (method.alpha * first + method.beta * second)
