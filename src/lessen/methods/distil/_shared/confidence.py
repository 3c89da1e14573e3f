"""What methods share that let a student trust itself where its teacher is weak."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from lessen.methods.distil._shared.distilled import Distilled, Scene
from lessen.methods.distil._shared.losses import check_answers, class_rows
from lessen.task import main_tensor
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import DistilHook


class TrustHook(DistilHook):
    """Base of comparisons of answers that know how much of the training is done."""

    def __init__(self, scene: Scene, method: Distilled) -> None:
        super().__init__(scene.teacher, main_tensor)
        self.given, settings = method, scene.task.settings
        self.steps, self.epochs = settings.steps, method.epochs or settings.epochs
        self.done = 0.0
        """Share of the training that is done: by steps where their number is known, else by epochs."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Note the progress."""
        super().after_step(model, step)
        if self.steps is not None:
            self.done = step / self.steps

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Note the progress."""
        if self.steps is None:
            self.done = epoch / self.epochs

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:
        """Return both terms, weighted. Raises TaskError when the teacher answers in another form."""
        check_answers(student[OUTPUT], teacher[OUTPUT])
        term = self.given.weight * self.term(class_rows(student[OUTPUT], batch), class_rows(teacher[OUTPUT], batch))
        return term + self.given.task_weight * loss if self.given.task_weight else term

    @abstractmethod
    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the scalar to minimise of logits [rows, classes]."""
