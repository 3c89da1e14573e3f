"""SliME: a mixture of two views of the whole, and of its tiles or frames the tokens that the words ask for."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card
from lessen.methods.tokens._shared.sights import Shown, SightMethod
from lessen.tokens.visual.slime import SliME as Mixture
from lessen.tokens.visual.splice import Sight


class SliME(SightMethod):
    """Keep the whole picture and few tokens for each of its tiles, chosen by the words.

    SliME, 2024 (arXiv 2406.08487); see `lessen.tokens.visual.slime` for what is done and how it differs. `video` takes
    the pictures of a prompt as frames, whose mean is the whole. The paper trains both views apart, then the tiles, then
    all; here all is trained at once (`lessen.tokens.visual.slime.SliME.stage` does the published steps one by one).
    Untrained, its tokens of tiles say nothing: train it.
    """

    card = Card(
        name="slime",
        family="tokens",
        summary="Show a picture whole by two mixed views, and of its tiles or frames what the words ask for.",
        acts_on=("visual tokens",),
        source="arXiv 2406.08487",
        claims=frozenset({"macs", "kv_bytes"}),
    )
    side: int | None = Field(None, ge=1, le=64, description="side of the grid of queries of a tile; none: half of it")
    top_p: float = Field(0.95, gt=0, le=1, description="share of the softmax of scores that the kept tokens reach")
    keep: int | None = Field(None, ge=1, le=100_000, description="tokens of all tiles together; takes top_p's place")
    temperature: float = Field(1.0, gt=0, le=1e6, description="of the softmax of scores")
    video: bool = Field(True, description="pictures of a prompt are frames; false: an overview and its tiles")

    def sight(self, shown: Shown) -> Sight:
        """Return the mixture and the router."""
        side = shown.side(self.card.name)
        own = max(1, side // 2) if self.side is None else self.side
        return Mixture(shown.width, shown.text, own, side, None, self.top_p, self.keep, self.temperature, self.video)
