"""ADEM-VL: a picture as a memory of every layer, and one token of the sequence."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card
from lessen.methods.tokens._shared.sights import Learns, Shown, SightMethod
from lessen.tokens.visual.fused import ADEMVL as Memory
from lessen.tokens.visual.splice import Sight


class ADEMVL(SightMethod):
    """Take the picture out of the sequence: every layer looks at it beside its feed-forward part, without parameters.

    ADEM-VL, 2024 (arXiv 2410.17779); see `lessen.tokens.visual.fused` for what is done and how it differs. The paper
    starts from a language model that never saw a picture, freezes it and trains 4.5 million numbers. The memory starts
    from nothing in a model that was trained with tokens of pictures too: train it.
    """

    card = Card(
        name="adem-vl",
        family="tokens",
        summary="Show a picture by one token and by a memory that every layer looks at without parameters.",
        acts_on=("visual tokens",),
        source="arXiv 2410.17779",
        claims=frozenset({"macs", "kv_bytes"}),
    )
    learns: Learns = Field("sight", description="what trains: the sight's own parts, the projector too, or all")
    windows: tuple[int, ...] = Field((1, 2), description="sides of the windows that the memory's grids are means of")
    inner: int = Field(128, ge=1, le=1 << 16, description="width inside the projectors")
    adapter: int = Field(12, ge=1, le=1 << 16, description="width of the tower's adapters")
    alpha: float = Field(0.1, gt=0, le=100, description="of what the memory adds in each layer")
    beta: float = Field(0.01, gt=0, le=1000, description="of the picture in the memory")
    drop: float = Field(0.1, ge=0, lt=1, description="share of a word's lowest scores that become zero")

    def sight(self, shown: Shown) -> Sight:
        """Return the memory."""
        side = shown.side(self.card.name)
        sizes = tuple(max(1, side // window) ** 2 for window in self.windows)
        return Memory(
            shown.width, shown.text, shown.depth, sizes, self.inner, self.adapter, self.alpha, self.beta, self.drop
        )
