"""DeCo: average windows of patches, the strongest simple baseline of learnt token reducers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field
from torch import nn

from lessen.architectures.visual_host import find_visual_host
from lessen.errors import InputError, NothingMatchedError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.tokens._shared.common import BLOCKS, CLAIMS, Survey, TokenMethod
from lessen.task import Task
from lessen.tokens.reducers import Pool, Reducer
from lessen.tokens.visual.before import picture_grid
from lessen.tokens.visual.stored import StoredPooling, pooling_of


class DeCo(TokenMethod):
    """Average disjoint windows of `window` x `window` patches in one block of the tower.

    DeCo, 2024 (arXiv 2405.20985) pools what a vision tower hands to a language model. In a model that has both (LLaVA)
    that is done without `block`: windows are averaged before the projector, overlapping where they do not divide the
    grid, and prompts become shorter; `fine_tune_epochs` then trains the projector with the pooling in place, as the
    paper does, and nothing else. In a tower alone `block` pools, the last one by default. Differences: inside a tower
    only divisible grids are pooled, so that every patch stays in one group, and the pooled cells carry their sizes into
    attention like merged tokens.
    """

    card = Card(
        name="deco",
        family="tokens",
        summary="Average windows of patches into one token each.",
        acts_on=BLOCKS,
        source="arXiv 2405.20985",
        claims=CLAIMS,
    )
    window: int = Field(2, ge=1, le=64, description="side of a window, in patches; must divide the grid")
    block: int | None = Field(None, ge=0, le=1000, description="block that pools, from 0; none: the last")
    rows: int | None = Field(None, ge=1, le=10_000, description="rows of the patch grid; none: it is square")
    proportional: bool = Field(True, description="add log(size) to the attention logits of each key")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Pool before the projector of a language model that sees pictures, else in the tower.

        Raises:
            NothingMatchedError: the model has no tower of a known family, or its pictures are pooled already.
            InputError: the grid is unknown, or the host merges or rearranges patches itself.
        """
        if self.block is not None or pooling_of(model) is not None:
            if pooling_of(model) is not None:
                raise self.nothing_matched(model, "its pictures are pooled by an earlier step")
            return super().apply(model, task, context)
        try:
            host = find_visual_host(model)
        except (InputError, NothingMatchedError):
            return super().apply(model, task, context)
        host.require_patches()
        grid = picture_grid(host, self.rows)
        target = (-(-grid[0] // self.window), -(-grid[1] // self.window))
        StoredPooling(target, None if self.rows is None else grid).attach(model)
        context.findings.update({"grid": list(grid), "pooled": list(target)})
        if self.fine_tune_epochs:
            with only(model, host.projector.module):
                retrain.train(model, task, context, epochs=self.fine_tune_epochs)
        return model

    def reducer(self, survey: Survey) -> Reducer:
        """Return the pooling step of a tower. Raises InputError when the grid is unknown or not divisible."""
        patches, depth = survey.shape.tokens - survey.tower.protected, survey.shape.depth
        rows = self.rows or math.isqrt(patches)
        if patches % rows or (self.rows is None and rows * rows != patches):
            raise InputError(f"deco: {patches} patches are no grid of {rows} rows; give rows")
        columns = patches // rows
        if rows % self.window or columns % self.window:
            raise InputError(f"deco: window {self.window} does not divide the {rows}x{columns} grid of patches")
        at = depth - 1 if self.block is None else self.block
        if at >= depth:
            raise InputError(f"deco: the tower has blocks 0..{depth - 1}, not {at}")
        target = (rows // self.window, columns // self.window)
        return Pool(proportional=self.proportional, blocks=depth, at=at, grid=(rows, columns), target=target)


@contextmanager
def only(model: nn.Module, part: nn.Module) -> Iterator[None]:
    """Let the parameters of `part` alone train, and put back what trained before."""
    before = {name: one.requires_grad for name, one in model.named_parameters()}
    own = {id(one) for one in part.parameters()}
    for one in model.parameters():
        one.requires_grad_(id(one) in own)
    try:
        yield
    finally:
        for name, one in model.named_parameters():
            one.requires_grad_(before[name])
