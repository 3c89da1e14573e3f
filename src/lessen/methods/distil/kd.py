"""KD: a student learns the teacher's probabilities of all classes, softened by a temperature."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from lessen.method import Card
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Distilled, Scene
from lessen.methods.distil._shared.losses import check_answers, class_rows, single_divergence, soft_divergence
from lessen.task import main_tensor
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import DistilHook, Teacher


class KD(Distilled):
    """Add T^2 KL(teacher || student) of softened class probabilities to the task's loss.

    Hinton, Vinyals, Dean, 2015 (arXiv 1503.02531). Weights and temperature default to those that later comparisons use
    (0.1 on the labels, 0.9 on the teacher, T = 4). One logit, as click models give, is that of the second of two
    classes; the logits of a language model are compared token by token.
    """

    card = Card(
        name="kd",
        family="distil",
        summary="Train a model on a teacher's softened class probabilities beside the labels.",
        acts_on=ACTS_ON,
        source="arXiv 1503.02531",
        needs=NEEDS,
        claims=CLAIMS,
    )
    weight: float = Field(0.9, ge=0, le=1e6, description="factor on the teacher's term")
    task_weight: float = Field(0.1, ge=0, le=1e6, description="factor on the task's own loss")
    temperature: float = Field(4.0, gt=0, le=1000, description="divides the logits of both")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of answers."""
        return _Answers(scene.teacher, self)


class _Answers(DistilHook):
    def __init__(self, teacher: Teacher, method: KD) -> None:
        super().__init__(teacher, main_tensor)
        self.method = method

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:
        """Return both terms, weighted. Raises TaskError when the teacher answers in another form."""
        check_answers(student[OUTPUT], teacher[OUTPUT])
        method = self.method
        if student[OUTPUT].ndim == 1:
            term = single_divergence(student[OUTPUT], teacher[OUTPUT], method.temperature)
        else:
            own, wanted = (class_rows(outputs[OUTPUT], batch) for outputs in (student, teacher))
            term = soft_divergence(own, wanted, method.temperature)
        return method.task_weight * loss + method.weight * term
