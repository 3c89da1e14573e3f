"""What methods share that leave out visual tokens between the layers of a language model which sees pictures."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pydantic import Field
from torch import nn

from lessen.architectures.visual_host import VisualHost, find_visual_host
from lessen.errors import BudgetError, NothingMatchedError
from lessen.method import Context, Method
from lessen.task import Task
from lessen.tokens.visual.inside import prune_visual_tokens
from lessen.tokens.visual.macs import prefill_macs, shapes
from lessen.tokens.visual.plan import VisualPruning
from lessen.tokens.visual.stored import StoredPruning, pruning_of

CLAIMS = frozenset({"macs", "kv_bytes"})
VISUAL = ("visual tokens",)
STEPS = 7
"""Halvings of the interval in which a share of tokens is sought: it is found to 0.8 %."""


class VisualMethod(Method):
    """Visual tokens left out between decoder layers while a prompt is read. Weights stay as they are."""

    keep: float
    """Share of tokens that a stage keeps; each method says what it is by default."""
    macs: float | None = Field(
        None, gt=0, le=1, description="share of the decoder's multiply-adds to reach; takes the place of keep"
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Put the pruning into the model.

        Raises:
            NothingMatchedError: no language model that sees pictures as tokens, or one that is pruned already.
            InputError: a stage lies beyond the decoder, or layers cannot follow.
            BudgetError: no share of tokens reaches the multiply-adds asked for.
        """
        if pruning_of(model) is not None:
            raise self.nothing_matched(model, "its visual tokens are pruned by an earlier step")
        try:
            host = find_visual_host(model)
        except NothingMatchedError as error:
            raise self.nothing_matched(model, str(error)) from error
        if self.macs is None:
            pruning = self.pruning(len(host.blocks), self.keep, context.seed)
        else:
            pruning = self._within(self.macs, model, host, task, context.seed)
        context.findings.update(_found(model, host, task, pruning) | {"pruning": pruning.config()})
        StoredPruning(pruning).attach(model)
        return model

    @abstractmethod
    def pruning(self, depth: int, share: float, seed: int) -> VisualPruning:
        """Return the pruning of a decoder of `depth` layers that keeps `share` of the tokens."""

    def _within(self, budget: float, model: nn.Module, host: VisualHost, task: Task, seed: int) -> VisualPruning:
        """Return the pruning that keeps most tokens within a share of the multiply-adds.

        Raises:
            BudgetError: keeping none needs more.
        """

        def share_of(share: float) -> float:
            found = _found(model, host, task, self.pruning(len(host.blocks), share, seed))
            return float(found.get("prefill_macs_share", 1.0))

        least = share_of(0.0)
        if least > budget:
            raise BudgetError(
                f"{self.card.name} cannot reach {budget:.3f} of the multiply-adds; with no token kept it needs "
                f"{least:.3f}, so prune earlier"
            )
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if share_of(middle) <= budget else (low, middle)
        return self.pruning(len(host.blocks), low, seed)


def scaled(layer: int | None, published: int, of: int, depth: int) -> int:
    """Return `layer`, or the layer as deep in `depth` as the published one was in `of`, at least 1."""
    return max(1, round(published * depth / of)) if layer is None else layer


def _found(model: nn.Module, host: VisualHost, task: Task, pruning: VisualPruning) -> dict[str, Any]:
    """Return tokens of each layer and the share of the decoder's multiply-adds, seen on the task's example batch.

    Empty where the example shows no picture.
    """
    patch = prune_visual_tokens(model, pruning)
    batch = task.example_batch()
    try:
        with torch.no_grad():
            task.forward(model.eval(), batch)
        tokens, layout = patch.tokens(), patch.last.layout
    finally:
        patch.remove()
    if layout is None:
        return {}
    full = int(layout.real.shape[1])
    visual = sum(picture.tokens for picture in layout.pictures) / len(layout.real)
    scored = [round(visual - (full - tokens[stage.layer - 1])) for stage in pruning.stages if pruning.scored]
    kinds = shapes(host)
    share = prefill_macs(kinds, tokens, scored) / prefill_macs(kinds, [full] * len(tokens))
    return {"tokens_in": full, "visual_tokens": visual, "tokens_by_layer": tokens, "prefill_macs_share": share}
