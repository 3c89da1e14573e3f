"""ToMe: merge the most similar token pairs in every block; and its control, which merges random pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lessen.method import Card
from lessen.methods.tokens._shared.common import BLOCKS, CLAIMS, Survey, TokenMethod, even_removals, gentlest
from lessen.tokens.reducers import Merge, Reducer
from lessen.tokens.schedules import possible, sloped

Metric = Literal["keys", "hidden", "random"]


class _Merging(TokenMethod):
    r: int | None = Field(None, ge=0, le=100_000, description="pairs merged in each block; none: from macs")
    slope: float = Field(0.0, ge=-1, le=1, description="-1 merges twice as much in the first block and 0 in the last")
    macs: float = Field(0.75, gt=0, le=1, description="share of the multiply-adds to reach when no r is given")
    proportional: bool = Field(True, description="add log(size) to the attention logits of each key")

    def _reducer(self, survey: Survey, metric: Metric, seed: int = 0) -> Reducer:
        depth = survey.shape.depth

        def make(removed: tuple[int, ...]) -> Merge:
            return Merge(proportional=self.proportional, removed=removed, metric=metric, seed=seed)

        if self.r is not None:
            return make(sloped(self.r, self.slope, depth))
        tokens, protected = survey.shape.tokens, survey.tower.protected
        candidates = [
            possible(tokens, even_removals(total, depth), protected) for total in range(tokens // 2 * depth + 1)
        ]
        return gentlest(survey, candidates, make, self.macs, self.card.name)


class ToMe(_Merging):
    """Merge r pairs of tokens in every block, between attention and MLP, without training.

    Token Merging: Your ViT But Faster, ICLR 2023 (arXiv 2210.09461). Even tokens are paired with their most similar
    odd token by the cosine of their keys (mean over heads); the r most similar pairs become size-weighted means, and
    log(size) is added to the logits of each key. Differences: any number of leading tokens is protected, a zero key
    matches nothing instead of giving NaN, sizes stay float32, and an r that an early block cannot reach is an error
    instead of being lowered silently (a budget `macs` does lower it, to halving in every block at most).
    """

    card = Card(
        name="tome",
        family="tokens",
        summary="Merge the r most similar token pairs in every Transformer block.",
        acts_on=BLOCKS,
        source="arXiv 2210.09461",
        claims=CLAIMS,
    )
    metric: Literal["keys", "hidden"] = Field("keys", description="what similarity compares")

    def reducer(self, survey: Survey) -> Reducer:
        """Return the merging schedule."""
        return self._reducer(survey, self.metric)


class RandomMerge(_Merging):
    """Merge as many random pairs as ToMe would merge similar ones: the control that every study should hold.

    The pairs depend on the seed, the block and the position only, so that the model stays a function of its input.
    """

    card = Card(
        name="token-random-merge",
        family="tokens",
        summary="Merge random token pairs: the control of merging by similarity.",
        acts_on=BLOCKS,
        source="random bipartite matching of arXiv 2210.09461",
        claims=CLAIMS,
    )

    def reducer(self, survey: Survey) -> Reducer:
        """Return the merging schedule with random pairs."""
        return self._reducer(survey, "random", survey.context.seed)
