"""Learning from the answers of a teacher, whatever they are: classes, tokens, or vectors of pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from lessen.capabilities import HasPairs
from lessen.methods.distil._shared.losses import check_answers, class_rows, single_divergence, soft_divergence
from lessen.task import Task, main_tensor
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import DistilHook, Teacher

SHARP = 20.0
"""One over the temperature of similarities."""


class Answers(DistilHook):
    """Adds the teacher's term to the task's loss: T^2 KL of classes, or similarities and distances of vectors.

    Args:
        task: makes vectors of what a model returns; a task with pairs is one of vectors.
        distance: factor on the squared distance of vectors of length one.
    """

    def __init__(
        self, teacher: Teacher, task: Task, *, weight: float = 1.0, task_weight: float = 1.0, temperature: float = 1.0,
        distance: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(teacher, main_tensor)
        self.task, self.weight, self.task_weight = task, weight, task_weight
        self.temperature, self.distance = temperature, distance

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:
        """Return both terms, weighted; vectors are made by the task, which pools what a model returns."""
        if not isinstance(self.task, HasPairs):
            return super().loss(model, batch, loss)
        own = functional.normalize(self.task.forward(model, batch), dim=-1)
        wanted = functional.normalize(self.teacher(batch)[OUTPUT], dim=-1)
        sharp = SHARP / self.temperature
        term = soft_divergence(sharp * own @ own.t(), sharp * wanted @ wanted.t(), 1.0)
        term = term + self.distance * (own - wanted).square().sum(-1).mean()
        return self.task_weight * loss + self.weight * term

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:
        """Return both terms, weighted. Raises TaskError when the teacher answers in another form."""
        check_answers(student[OUTPUT], teacher[OUTPUT])
        if student[OUTPUT].ndim == 1:
            term = single_divergence(student[OUTPUT], teacher[OUTPUT], self.temperature)
        else:
            own, wanted = (class_rows(outputs[OUTPUT], batch) for outputs in (student, teacher))
            term = soft_divergence(own, wanted, self.temperature)
        return self.task_weight * loss + self.weight * term
