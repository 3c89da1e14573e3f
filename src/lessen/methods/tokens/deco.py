"""DeCo: average windows of patches, the strongest simple baseline of learnt token reducers."""

from __future__ import annotations

import math

from pydantic import Field

from lessen.errors import InputError
from lessen.method import Card
from lessen.methods.tokens._shared.common import BLOCKS, CLAIMS, Survey, TokenMethod
from lessen.tokens.reducers import Pool, Reducer


class DeCo(TokenMethod):
    """Average disjoint windows of `window` x `window` patches in one block of the tower.

    DeCo, 2024 (arXiv 2405.20985) pools what a vision tower hands to a language model: that is `block: none`, the last
    one, and the saving is then in the language model, which sees fewer tokens. An earlier block saves in the tower
    too. Differences: inside a tower only divisible grids are pooled, so that every patch stays in one group
    (`lessen.tokens.pooling.pool_features` does the overlapping windows of other sizes on features), and the pooled
    cells carry their sizes into attention like merged tokens.
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

    def reducer(self, survey: Survey) -> Reducer:
        """Return the pooling step. Raises InputError when the grid is unknown or not divisible."""
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
