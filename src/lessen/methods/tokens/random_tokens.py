"""Random visual tokens: the control that every comparison of visual token reductions should hold."""

from __future__ import annotations

from lessen.method import Card
from lessen.methods.tokens._shared.one_stage import OneStage
from lessen.methods.tokens._shared.visual import CLAIMS, VISUAL


class RandomTokens(OneStage):
    """Keep random tokens of each picture from one layer on: the control that many published choices lose to.

    The choice depends on the seed, the layer and the place in the picture alone, so that a model stays a function of
    its input.
    """

    card = Card(
        name="random-tokens",
        family="tokens",
        summary="Leave out random visual tokens: the control of every choice.",
        acts_on=VISUAL,
        source="the random control of arXiv 2403.06764",
        claims=CLAIMS,
    )
    choice = "random"
