"""A-CLIP's attentive masking as a way to train for less: half the tokens, chosen by a slowly moving copy."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from lessen.errors import InputError
from lessen.method import Card, Context, Method
from lessen.methods import retrain
from lessen.methods.tokens.common import BLOCKS
from lessen.task import Task
from lessen.tokens.attentive import AttentionMap, MovingAverage, attentive_plan
from lessen.tokens.families import find_tower
from lessen.train.fit import Hook


class AttentiveMask(Method):
    """Fine-tune on the patches that an exponential moving average of the model attends to.

    Attentive Mask CLIP, ICCV 2023 (arXiv 2212.08653). Only training is cheaper: the model that comes out takes all
    tokens and costs what it did. Differences: one view and the task's own loss instead of two views with contrastive
    losses, so the moving average sees the same picture as the model and no map has to be carried between crops
    (`lessen.tokens.attentive.view_of` does that for users who train with crops).
    """

    card = Card(
        name="attentive-mask",
        family="tokens",
        summary="Train on the half of the patches that a moving average of the model attends to.",
        acts_on=BLOCKS,
        source="arXiv 2212.08653",
        needs=frozenset({"gradients", "training"}),
        frees=frozenset(),
        tags=frozenset({"training", "vision"}),
    )
    share: float = Field(0.5, gt=0, le=1, description="share of the cells kept in training")
    cell: int = Field(2, ge=1, le=64, description="side of a cell, in patches")
    epochs: int = Field(1, ge=1, le=1000, description="epochs of masked training")
    momentum: float = Field(0.996, ge=0, lt=1, description="of the moving average")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train with masks and return the model, unpatched. Raises as every method that trains."""
        masking = _Masking(model, self)
        try:
            retrain.train(model, task, context, epochs=self.epochs, hooks=(masking,))
        finally:
            masking.remove()
        context.findings["training_tokens"] = masking.kept
        return model


class _Masking(Hook):
    """Drops patches before the first block while the model trains, and moves the average after each step."""

    def __init__(self, model: nn.Module, method: AttentiveMask) -> None:
        self.method, self.kept = method, 0
        self.tower = find_tower(model)
        self.average = MovingAverage(model, method.momentum)
        self.map = AttentionMap(self.average.model)
        self.attention: Tensor | None = None
        self.handles = [
            model.register_forward_pre_hook(self._look, with_kwargs=True),
            self.tower.blocks[0].register_forward_pre_hook(self._drop),
        ]

    def _look(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.attention = self.map(self.average.model, *arguments, **keywords) if model.training else None

    def _drop(self, _block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.attention is None:
            return None
        patches = self.attention.shape[1] - self.tower.protected
        side = math.isqrt(patches)
        if side * side != patches:
            raise InputError(f"attentive masking needs a square grid of patches, found {patches} patches")
        plan = attentive_plan(self.attention, (side, side), self.method.share, self.tower.protected, self.method.cell)
        self.kept = plan.kept
        return (plan.features(inputs[0]), *inputs[1:])

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002 - the base class's signature
        """Move the average."""
        self.average.update(model)

    def remove(self) -> None:
        """Take the hooks out of the model."""
        for handle in self.handles:
            handle.remove()
