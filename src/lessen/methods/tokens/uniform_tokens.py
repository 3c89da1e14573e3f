"""Evenly spaced visual tokens: the control of choices that look at the picture."""

from __future__ import annotations

from lessen.method import Card
from lessen.methods.tokens._shared.one_stage import OneStage
from lessen.methods.tokens._shared.visual import CLAIMS, VISUAL


class UniformTokens(OneStage):
    """Keep every so many-th token of each picture from one layer on, rows one after another: the even control."""

    card = Card(
        name="uniform-tokens",
        family="tokens",
        summary="Leave out visual tokens evenly: the control of choices that look at the picture.",
        acts_on=VISUAL,
        source="the uniform control of arXiv 2412.13180",
        claims=CLAIMS,
    )
    choice = "uniform"
