"""Determinantal choice: visual tokens that matter to the prompt and differ from one another."""

from __future__ import annotations

from lessen.method import Card
from lessen.methods.tokens._shared.one_stage import OneStage
from lessen.methods.tokens._shared.visual import CLAIMS, VISUAL


class DeterminantalTokens(OneStage):
    """Keep a set of visual tokens that is relevant and varied, from one layer on.

    The greedy maximum of a conditional determinantal point process, as CDPruner chooses (arXiv 2506.10967; greedy rule
    of arXiv 1709.05135). Differences: it is taken between decoder layers, where relevance is the last token's attention
    without rotary positions and likeness the cosine of hidden states; CDPruner chooses before the language model by a
    text encoder, which hosts like LLaVA do not carry.
    """

    card = Card(
        name="determinantal-tokens",
        family="tokens",
        summary="Leave out visual tokens that are alike or matter little to the prompt, by a determinant.",
        acts_on=VISUAL,
        source="arXiv 2506.10967",
        claims=CLAIMS,
    )
    choice = "determinant"

    def rope_of_scores(self) -> bool:
        """Return False: relevance favours no part of the picture."""
        return False
