"""RotNet: a network learns from pictures without labels, by telling how each was turned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.distil._shared.distilled import ACTS_ON, Trained, probe
from lessen.methods.distil._shared.features import penultimate, vectors
from lessen.task import Task, main_tensor
from lessen.train.hooks import Hook
from lessen.train.nested import map_tensors
from lessen.train.taps import Taps

TURNS = 4


class RotNet(Trained):
    """Train the network to tell 0, 90, 180 and 270 degrees, on the task's pictures, and leave it for a later step.

    Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018 (arXiv 1803.07728). All four turned
    copies of a picture stand in one batch; turns are exact, counter-clockwise. A four-way head on what enters the
    model's own head is thrown away; the own head stays as it was, so that the step is an ingredient: fine-tune after
    it. Differences: the batches of the task's train split are turned as they come, after whatever augmentation the task
    does, where the paper augments each copy after turning; the last epoch's weights are kept, since nothing is judged.
    A step costs four times that of the task. Digits, textures and round things have no up: the findings hold how often
    turns were told right, of validation pictures; near 25 % nothing was learned.
    """

    card = Card(
        name="rotnet",
        family="distil",
        summary="Pretrain a network without labels by telling how pictures were turned.",
        acts_on=ACTS_ON,
        source="ICLR 2018, arXiv 1803.07728",
        needs=frozenset({"gradients", "training"}),
        claims=frozenset(),
    )
    layer: str | None = Field(
        None, description="path of the layer that the head reads, PATH:input for its input; none: what enters the head"
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the model.

        Raises:
            TaskError: the task cannot train, or the model is called with anything but square pictures.
        """
        batch = task.example_batch()
        pictures_of(task, batch)
        student, settle = self._student(model, task, context)
        layer = self.layer or penultimate(student, task.forward, batch)
        head = {name: value.clone() for name, value in student.state_dict().items()}
        hook = _Turned(layer, task, batch)
        view = task.view(loss=hook.turned, score=lambda *_: 0.0)
        retrain.train(student, self.paced(view), context, epochs=self.epochs, hooks=(hook,))
        settle()
        _restore(student, head, layer)
        context.findings["turns told right"] = hook.share
        return student


def pictures_of(task: Task, batch: Any) -> Tensor:
    """Return the pictures of a batch, [B, C, S, S]. Raises TaskError where the model is called with others."""
    inputs = task.inputs(batch)
    if isinstance(inputs, dict):
        inputs = inputs.get("pixel_values")
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[2] != inputs.shape[3]:
        raise TaskError(
            f"rotnet turns square pictures [rows, channels, side, side]; task {task.name!r} gives none to its model"
        )
    return inputs


def turned(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four turned copies [4 B, C, S, S], all of one turn together, and their turns, int64 [4 B]."""
    copies = torch.cat([torch.rot90(pictures, turn, dims=(2, 3)) for turn in range(TURNS)])
    return copies, torch.arange(TURNS, device=pictures.device).repeat_interleave(len(pictures))


def _restore(model: nn.Module, before: dict[str, Tensor], layer: str) -> None:
    """Give the module after the features its tensors back: training has moved it only by weight decay."""
    path = layer.removesuffix(":input")
    if layer.endswith(":input"):
        with torch.no_grad():
            for name, value in model.get_submodule(path).state_dict().items():
                value.copy_(before[f"{path}.{name}"])


class _Turned(Hook):
    def __init__(self, layer: str, task: Task, batch: Any) -> None:
        self.layer, self.task, self.batch = layer, task, batch
        self.share = 0.0
        self._caught: Taps | None = None

    def start(self, model: nn.Module) -> None:
        """Make the head for the width that one batch shows."""
        width = vectors(probe(model, (self.layer,), self.task, self.batch)[self.layer]).shape[1]
        self.module = nn.Linear(width, TURNS)
        self._caught = Taps(model, (self.layer,), main_tensor, training_only=False)

    def turned(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross-entropy of turns."""
        logits, turns = self._told(model, batch)
        return F.cross_entropy(logits.float(), turns)

    def _told(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        assert self._caught is not None
        assert self.module is not None
        pictures = pictures_of(self.task, batch)
        copies, turns = turned(pictures)
        self.task.forward(model, map_tensors(batch, lambda one: copies if one is pictures else one))
        logits: Tensor = self.module(vectors(self._caught.take()[self.layer]))
        return logits, turns

    def finish(self, model: nn.Module) -> None:
        """Judge the head on validation pictures, and stop watching."""
        if self._caught is None:
            return
        if self.module is not None:
            self.share = self._judged(model)
        self._caught.remove()

    @torch.no_grad()
    def _judged(self, model: nn.Module) -> float:
        right = count = 0
        for batch in self.task.batches("validation"):
            logits, turns = self._told(model.eval(), batch)
            right += int((logits.argmax(dim=1) == turns).sum())
            count += len(turns)
        return right / max(1, count)
