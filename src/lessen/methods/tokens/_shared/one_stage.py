"""One layer from which a share of each picture's tokens is left: FastV's form, and that of its controls."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from lessen.methods.tokens._shared.visual import VisualMethod, scaled
from lessen.tokens.visual.plan import Choice, Stage, VisualPruning

FASTV = (3, 32)
"""The published layer, and the depth of the model it was published for."""


class OneStage(VisualMethod):
    """A share of the tokens is kept from one layer on."""

    choice: ClassVar[Choice]
    layer: int | None = Field(
        None, ge=1, le=10_000, description="first layer with fewer tokens; none: 3 of 32 layers, as published"
    )
    keep: float = Field(0.25, ge=0, le=1, description="share of each picture's tokens that is kept")

    def pruning(self, depth: int, share: float, seed: int) -> VisualPruning:
        """Return the stage and its choice."""
        stage = Stage(scaled(self.layer, *FASTV, depth), share)
        return VisualPruning((stage,), self.choice, self.rope_of_scores(), seed)

    def rope_of_scores(self) -> bool:
        """Return whether scores are taken with rotary positions."""
        return True
