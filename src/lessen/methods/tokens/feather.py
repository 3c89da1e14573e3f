"""FEATHER: scores without rotary positions, a uniform grid that is kept, and a second, deeper stage."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card
from lessen.methods.tokens._shared.visual import CLAIMS, VISUAL, VisualMethod, scaled
from lessen.tokens.visual.plan import Stage, VisualPruning

DEPTH, FIRST, SECOND = 32, 8, 16


class Feather(VisualMethod):
    """Keep the best-scored tokens and a uniform grid, then far fewer in a second stage.

    Feather the Throttle, ICCV 2025 (arXiv 2412.13180). Scores are attention of the last token without rotary positions,
    so that no part of the picture is favoured; of n tokens int(keep * n) and those on every `stride`-th row and column
    stay at the first stage, and int(keep^2 * n') at the second, where the grid has no protection. Differences: stages
    of other depths are scaled (8 and 16 of 32 layers), prompts of a batch and pictures of a prompt choose each for
    themselves, and where unions with the grid differ in size the shorter prompts are filled with tokens nobody sees.
    """

    card = Card(
        name="feather",
        family="tokens",
        summary="Leave out visual tokens in two stages, scored without positions beside a uniform grid.",
        acts_on=VISUAL,
        source="arXiv 2412.13180",
        claims=CLAIMS,
    )
    layer: int | None = Field(None, ge=1, le=10_000, description="first stage; none: 8 of 32 layers, as published")
    second: int | None = Field(None, ge=2, le=10_000, description="second stage; none: 16 of 32 layers, as published")
    keep: float = Field(0.3, ge=0, le=1, description="share kept at the first stage, and its square at the second")
    stride: int = Field(3, ge=0, le=1000, description="rows and columns of the grid that is kept first; 0: none")

    def pruning(self, depth: int, share: float, seed: int) -> VisualPruning:  # noqa: ARG002 - nothing is drawn
        """Return both stages."""
        first = scaled(self.layer, FIRST, DEPTH, depth)
        second = max(first + 1, scaled(self.second, SECOND, DEPTH, depth))
        return VisualPruning((Stage(first, share, stride=self.stride), Stage(second, share**2)), rope=False)
