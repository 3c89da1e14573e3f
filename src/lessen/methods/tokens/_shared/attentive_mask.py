"""A-CLIP's attentive masking as a way to train for less: half the tokens, chosen by a slowly moving copy.

Attentive Mask CLIP, ICCV 2023 (arXiv 2212.08653). It makes training cheaper, not the model, so it is a hook of the
training loop and no method of its own; token methods use it when they fine-tune. Differences: one view and the task's
own loss instead of two views with contrastive losses, so the moving average sees the same picture as the model and no
map has to be carried between crops (`lessen.tokens.attentive.view_of` does that for users who train with crops).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from lessen.architectures.vit import find_tower
from lessen.errors import InputError
from lessen.tokens.attentive import AttentionMap, MovingAverage, attentive_plan
from lessen.tokens.stored import detach, patch_of
from lessen.train.hooks import Hook


class AttentiveMasking(Hook):
    """Drops patches before the first block while the model trains, and moves the average after each step.

    Args:
        share: share of the cells kept; int(cells * share) + 1 of them, as published.
        cell: side of a cell in patches.
        momentum: of the moving average.
    """

    def __init__(self, model: nn.Module, share: float = 0.5, cell: int = 2, momentum: float = 0.996) -> None:
        self.share, self.cell, self.kept = share, cell, 0
        self.tower = find_tower(model)
        self.patch = patch_of(model)
        if self.patch is not None:  # of the patches that are left, blocks reduce as many as there are
            self.patch.strict = False
        self.average = MovingAverage(model, momentum)
        detach(self.average.model)  # the map needs all tokens in every block
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
        plan = attentive_plan(self.attention, (side, side), self.share, self.tower.protected, self.cell)
        self.kept = plan.kept
        return (plan.features(inputs[0]), *inputs[1:])

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002 - the base class's signature
        """Move the average."""
        self.average.update(model)

    def remove(self) -> None:
        """Take the hooks out of the model."""
        if self.patch is not None:
            self.patch.strict = True
        for handle in self.handles:
            handle.remove()
