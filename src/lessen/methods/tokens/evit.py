"""EViT and its relatives: keep the best-scored share of the tokens in a few blocks, drop or fuse the rest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lessen.errors import InputError
from lessen.method import Card
from lessen.methods.tokens._shared.common import BLOCKS, CLAIMS, Survey, TokenMethod, evenly_placed, gentlest
from lessen.tokens.reducers import Keep, Reducer
from lessen.tokens.scores import Scorer


class Keeping(TokenMethod):
    """Keeps a share of the tokens in chosen blocks; subclasses choose the score."""

    keep: float | None = Field(None, gt=0, le=1, description="share of the tokens kept in each chosen block")
    blocks: tuple[int, ...] = Field((), description="blocks that reduce, from 0; none: 3, 6 and 9 of 12, in proportion")
    macs: float = Field(0.75, gt=0, le=1, description="share of the multiply-adds to reach when no keep is given")

    def _reducer(self, survey: Survey, scorer: Scorer, fuse: bool, seed: int = 0) -> Reducer:
        depth = survey.shape.depth
        chosen = self.blocks or evenly_placed(depth)
        if any(not 0 <= block < depth for block in chosen):
            raise InputError(f"{self.card.name}: blocks {list(chosen)} are not all among 0..{depth - 1}")

        def make(rate: float) -> Keep:
            rates = tuple(rate if block in chosen else 1.0 for block in range(depth))
            return Keep(rates=rates, scorer=scorer, fuse=fuse, seed=seed)

        if self.keep is not None:
            return make(self.keep)
        others = survey.shape.tokens - survey.tower.protected
        candidates = [count / others for count in range(others, 0, -1)]
        return gentlest(survey, candidates, make, self.macs, self.card.name)


class EViT(Keeping):
    """Keep the patches that the class token attends to; fuse the rest into one token, or drop it.

    Not All Patches are What You Need, ICLR 2022 (arXiv 2202.07800). The ceil(keep * n) tokens with the largest class
    attention (mean over heads) stay in three blocks, after the attention residual; the fused token is the sum of the
    rest weighted by that attention, not normalised. Differences: kept tokens stay in image order, registers and
    distillation tokens are protected, and the class row is recomputed alone, so that fused attention stays in use.
    """

    card = Card(
        name="evit",
        family="tokens",
        summary="Keep the tokens that the class token attends to and fuse the rest into one.",
        acts_on=BLOCKS,
        source="arXiv 2202.07800",
        claims=CLAIMS,
    )
    fuse: bool = Field(True, description="fuse the rest into one token instead of dropping it")
    scorer: Literal["class_attention", "received_attention"] = Field(
        "class_attention", description="received_attention is for towers without class token"
    )

    def reducer(self, survey: Survey) -> Reducer:
        """Return the keep schedule."""
        return self._reducer(survey, self.scorer, self.fuse)


class RandomDrop(Keeping):
    """Drop random tokens, as many as EViT would: the control of scored pruning.

    Which positions are dropped depends on the seed and the block only.
    """

    card = Card(
        name="token-random-drop",
        family="tokens",
        summary="Drop random tokens: the control of pruning by a score.",
        acts_on=BLOCKS,
        source="control of arXiv 2202.07800",
        claims=CLAIMS,
    )

    def reducer(self, survey: Survey) -> Reducer:
        """Return the keep schedule with random scores."""
        return self._reducer(survey, "random", False, survey.context.seed)
