"""DistillAM: a model without optional inputs learns what one with all of them answers."""

from __future__ import annotations

import copy

from pydantic import Field
from torch import Tensor, nn

from lessen.capabilities import HasTeacher
from lessen.method import Card, Context
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Distilled, Scene
from lessen.methods.distil._shared.losses import check_answers, class_rows, soft_divergence
from lessen.methods.distil._shared.optional import MissingInputs
from lessen.task import Batch, Task, main_tensor
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import DistilHook


class DistillAM(MissingInputs, Distilled):
    """DropAM, and KL(teacher with all inputs || student with some) at temperature 1.

    MR-VPC (arXiv 2403.19221). The given model teaches itself where no `teacher` is named: it was trained on complete
    inputs. The teacher reads the same rows undropped; answers are compared class by class, or token by token.
    Differences: as in `drop-am`; the paper's weight was not found, 1 is ours.
    """

    card = Card(
        name="distill-am",
        family="distil",
        summary="Train a model that lacks optional inputs now and then on the answers of one that has them all.",
        acts_on=ACTS_ON,
        source="arXiv 2403.19221",
        needs=NEEDS,
        claims=CLAIMS,
    )
    temperature: float = Field(1.0, gt=0, le=1000, description="divides the logits of both")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the model. Raises as `DropAM.apply`, and what a teacher that cannot be read raises."""
        view, optional = self.dropping(task, context)
        student = super().apply(model, view, context)
        context.findings["score by inputs"] = optional.scores(student)
        return student

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of answers."""
        return _Complete(scene, self)

    def _master(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        if self.teacher is None and not isinstance(task, HasTeacher):
            context.findings["teacher"] = "the given model"
            return copy.deepcopy(model)
        return super()._master(model, task, context)


class _Complete(DistilHook):
    def __init__(self, scene: Scene, method: DistillAM) -> None:
        super().__init__(scene.teacher, main_tensor)
        self.method = method

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return both terms, weighted: the student's answers are those that the task's loss was computed from."""
        check_answers(student[OUTPUT], teacher[OUTPUT])
        own, wanted = (class_rows(outputs[OUTPUT], batch) for outputs in (student, teacher))
        method = self.method
        return method.task_weight * loss + method.weight * soft_divergence(own, wanted, method.temperature)
