"""Retraining what earlier steps left: with labels, with a teacher, or with neither, block by block in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.adapt._shared.answers import Answers
from lessen.methods.adapt._shared.refitting import refit_blocks
from lessen.methods.adapt.lora import LoRA
from lessen.methods.distil._shared.distilled import CLAIMS, Distilled, Scene
from lessen.methods.sites import replace_everywhere
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.task import Task
from lessen.train.teachers import DistilHook

NEEDS = frozenset({"labels", "gradients", "training", "calibration"})


class Retrain(Distilled):
    """Recover after pruning, or after any step that leaves layers that train.

    labels    the task's own training
    teacher   beside it the answers of the model that the recipe was given, or of another: classes and tokens by
              T^2 KL, vectors of pairs by their similarities, softened, and their squared distance, as MoPE-CLIP does
              (arXiv 2403.07839)
    blocks    no training: in each block the layers that write into the stream are refitted to what the blocks of the
              given model write, by ridge regression on calibration activations ("block reconstruction", as in
              arXiv 2510.14444, there by gradient descent)

    `lora` keeps the weights and trains corrections of low rank (arXiv 2106.09685), which are added to the weights
    afterwards: nothing is left to serve.
    """

    card = Card(
        name="retrain",
        family="adapt",
        summary="Recover what earlier steps lost: with labels, a teacher, or closed-form refits of blocks.",
        acts_on=("model",),
        source="arXiv 2403.07839, 2510.14444, 2106.09685",
        needs=NEEDS,
        claims=CLAIMS,
    )
    by: Literal["labels", "teacher", "blocks"] = Field("labels", description="what is learned from")
    lora: int | None = Field(
        None, ge=1, le=4096, description="rank of corrections that train in place of the weights; none: all train"
    )
    alpha: float = Field(4.0, gt=0, le=1e4, description="lora: corrections are multiplied by alpha")
    temperature: float = Field(1.0, gt=0, le=1000, description="teacher: divides the logits, or 1/20 of similarities")
    distance: float = Field(1.0, ge=0, le=1e6, description="teacher of vectors: factor on their squared distance")
    calibration_batches: int = Field(16, ge=1, le=100_000, description="blocks: train batches to refit on")
    ridge: float = Field(1e-3, gt=0, le=1e3, description="blocks: pull towards the weights as they are")
    drift: float = Field(
        1.0, ge=0, le=1, description="blocks: share of what earlier blocks left different that is made good too"
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Return the recovered model.

        Raises:
            TaskError: the task cannot train, or there is nobody to learn from.
            InputError: blocks: the model and its original do not belong together.
        """
        if self.by == "blocks":
            return self._refitted(model, task, context)
        if self.by == "teacher":
            return super().apply(model, task, context)
        student, settle = self._student(model, task, context)
        retrain.fine_tune(student, self.paced(task), context, epochs=self.epochs)
        settle()
        return student

    def _refitted(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        if context.original is None:
            raise TaskError("retrain by blocks needs the model that the recipe was given; put it after other steps")
        model.eval()
        left = refit_blocks(
            model, context.original, task, self.calibration_batches, self.ridge, self.drift, context.log
        )  # fmt: skip
        context.findings["energy left missing"] = left
        return model

    def readied(self, student: nn.Module, context: Context) -> tuple[nn.Module, Callable[[], None]]:
        """Return the student, with corrections where `lora` is set, which are added to the weights at the end."""
        if self.lora is None:
            return student, lambda: None
        student, settle = LoRA(rank=self.lora, alpha=self.alpha * self.lora).wrapped(student, context)

        def merge() -> None:
            merge_corrections(student)
            settle()

        return student, merge

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of answers."""
        return Answers(
            scene.teacher, scene.task, weight=self.weight, task_weight=self.task_weight, temperature=self.temperature,
            distance=self.distance,
        )  # fmt: skip


@torch.no_grad()
def merge_corrections(model: nn.Module) -> None:
    """Add low-rank corrections to the weights that they stand beside, and put the plain layers back."""
    for module in list(model.modules()):
        if isinstance(module, LowRankDelta):
            module.layer.weight += module.scale * module.up @ module.down
            replace_everywhere(model, module, module.layer.train(module.training))
