"""OFA-KD: every stage of a student gets a class head of its own that learns a teacher of any architecture."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.stages import find_stages
from lessen.errors import ConfigError, InputError, TaskError, nearest
from lessen.method import Card
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Distilled, Scene, probe
from lessen.methods.distil._shared.exits import branch
from lessen.methods.distil._shared.features import penultimate, vectors
from lessen.methods.distil._shared.losses import check_answers, class_of, class_rows, enhanced_cross_entropy
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import DistilHook, evaluating


class OFAKD(Distilled):
    """Add the enhanced cross-entropy with a teacher's probabilities for the answer and for a branch of every stage.

    One-for-All, NeurIPS 2023 (arXiv 2310.19444), following its published code where paper and code differ. Features
    of a convolutional network and a Transformer do not align; class logits do, so each stage's features are mapped to
    logits by a branch that is thrown away. `exponent` above 1 weighs the true class up, most where the teacher is sure,
    and the teacher's small probabilities down; it also scales the loss. Each term at exponent 1 is plain distillation
    at temperature 1. The teacher gives logits only.

    Differences: log-softmax in place of the logarithm of a softmax; of several class tokens the mean is pooled; tokens
    of another width than the head's are mapped to it; the number of halvings follows the number of stages found, and
    the merging of tokens their grid, so that pictures need not be 224 pixels wide; BatchNorm of branches is the
    framework's default.
    """

    card = Card(
        name="ofa-kd",
        family="distil",
        summary="Train a model on a teacher of any architecture by class heads at the exits of its stages.",
        acts_on=ACTS_ON,
        source="NeurIPS 2023, arXiv 2310.19444",
        needs=NEEDS,
        claims=CLAIMS,
    )
    stage_weight: float = Field(1.0, ge=0, le=1e6, description="factor on the sum of the branches' terms")
    exponent: float = Field(1.0, ge=1, le=10, description="epsilon of the branches; 1: plain distillation")
    last_exponent: float | None = Field(None, ge=1, le=10, description="epsilon of the answer; none: as the branches")
    temperature: float = Field(1.0, gt=0, le=1000, description="divides the logits of both")
    stages: tuple[str, ...] | None = Field(None, description="paths of the stages' last modules; none: found")

    def student_taps(self, student: nn.Module, task: Task, batch: Any) -> tuple[str, ...]:
        """Return the exits of the student's stages.

        Raises:
            ConfigError: a named stage is not there.
            InputError: none is named and none is found.
        """
        if self.stages is None:
            with evaluating(student):
                return find_stages(student, lambda model: task.forward(model, to_device(batch, device_of(model))))
        known = [path for path, _ in student.named_modules() if path]
        for path in self.stages:
            if path not in known:
                raise ConfigError(f"ofa-kd: stages names {path!r}, which the student lacks; {nearest(path, known)}")
        return self.stages

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of answers and branches."""
        return _Exits(scene, self)


class _Exits(DistilHook):
    def __init__(self, scene: Scene, method: OFAKD) -> None:
        super().__init__(scene.teacher, main_tensor, scene.taps)
        self.scene, self.method, self.task = scene, method, scene.task
        scene.context.findings["stages"] = list(scene.taps)

    def start(self, model: nn.Module) -> None:
        """Make the branches for the shapes that one batch shows, and watch the student."""
        task, batch = self.task, self.scene.batch
        before = penultimate(model, task.forward, batch)
        seen = probe(model, (*self.taps, before), task, batch)
        classes = class_rows(seen[OUTPUT], batch).shape[1]
        width = vectors(seen[before]).shape[1]
        wide = max(width, self._teacher_width())
        count = len(self.taps)
        self.module = nn.ModuleList(
            branch(seen[path], count - 1 - number, width, wide, classes) for number, path in enumerate(self.taps)
        )
        super().start(model)

    def _teacher_width(self) -> int:
        teacher, task, batch = self.teacher.model, self.task, self.scene.batch
        try:
            before = penultimate(teacher, task.forward, batch)
        except InputError:  # a teacher may be a black box
            return 0
        return vectors(probe(teacher, (before,), task, batch)[before]).shape[1]

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:
        """Return all terms, weighted. Raises TaskError when answers or labels have another form."""
        assert isinstance(self.module, nn.ModuleList)
        check_answers(student[OUTPUT], teacher[OUTPUT])
        method, own, wanted = self.method, class_rows(student[OUTPUT], batch), class_rows(teacher[OUTPUT], batch)
        target = class_of(self.task.target(batch)).to(own.device)
        if len(target) != len(own) or student[OUTPUT].ndim > 2:
            raise TaskError(
                f"ofa-kd needs a class for each of {len(own)} answers, the task gives {len(target)}; use kd"
            )
        last = method.exponent if method.last_exponent is None else method.last_exponent
        total = method.task_weight * loss
        total = total + method.weight * enhanced_cross_entropy(own, wanted, target, last, method.temperature)
        if method.stage_weight:
            for path, one in zip(self.taps, self.module, strict=True):
                logits = one(student[path])
                term = enhanced_cross_entropy(logits, wanted, target, method.exponent, method.temperature)
                total = total + method.stage_weight * term
        return total
