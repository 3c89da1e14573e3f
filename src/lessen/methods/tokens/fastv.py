"""FastV: of each picture, the tokens that the prompt's last token looks at most in an early layer."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card
from lessen.methods.tokens._shared.one_stage import OneStage
from lessen.methods.tokens._shared.visual import CLAIMS, VISUAL


class FastV(OneStage):
    """Keep the visual tokens that the last token attends to most in the layer before, from one layer on.

    An Image is Worth 1/2 Tokens After Layer 2, ECCV 2024 (arXiv 2403.06764). Scores keep their rotary positions, which
    favour the end of a picture: questions about places suffer, as FEATHER shows. Differences: the softmax is over the
    tokens of each picture alone instead of all keys, prompts of a batch and pictures of a prompt choose each for
    themselves, and the first choice stays (the published variant with a cache).
    """

    card = Card(
        name="fastv",
        family="tokens",
        summary="Leave out the visual tokens that the prompt's last token looks at least, from an early layer on.",
        acts_on=VISUAL,
        source="arXiv 2403.06764",
        claims=CLAIMS,
    )
    choice = "attention"
    rope: bool = Field(True, description="score with rotary positions; false is the paper FEATHER's ablation")

    def rope_of_scores(self) -> bool:
        """Return `rope`."""
        return self.rope
