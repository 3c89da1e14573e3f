"""HiRes-LLaVA: slices of a picture that see each other, and windows of it that ask for themselves."""

from __future__ import annotations

from pydantic import Field

from lessen.errors import InputError
from lessen.method import Card
from lessen.methods.tokens._shared.sights import Shown, SightMethod
from lessen.tokens.visual.hires import HiResLLaVA as Slices
from lessen.tokens.visual.splice import Sight


class HiResLLaVA(SightMethod):
    """Join the slices of a picture inside the tower and show it by means of windows that look at all of it.

    HiRes-LLaVA, 2024 (arXiv 2407.08706), reconstructed from summaries; see `lessen.tokens.visual.hires` for what is
    ours. A picture that is not sliced (`rows` and `columns` 1, no overview) keeps the sampler and the adapters as plain
    residual blocks. New parts change nothing until they are trained: the sampler starts as average pooling.
    """

    card = Card(
        name="hires-llava",
        family="tokens",
        summary="Join the slices of a picture inside the tower, and show it by pooled tokens that look at all of it.",
        acts_on=("visual tokens",),
        source="arXiv 2407.08706",
        claims=frozenset({"macs", "kv_bytes"}),
    )
    rows: int = Field(1, ge=1, le=16, description="rows of slices of a picture")
    columns: int = Field(1, ge=1, le=16, description="columns of slices")
    overview: bool = Field(False, description="whether each picture comes with one before its slices")
    window: int = Field(2, ge=1, le=64, description="side of the windows that become one token")
    every: int = Field(6, ge=1, le=100, description="layers of the tower from one adapter to the next")

    def sight(self, shown: Shown) -> Sight:
        """Return adapters before every so-many-th layer of the tower, and the sampler."""
        side = shown.side(self.card.name)
        target = (side * self.rows // self.window, side * self.columns // self.window)
        if min(target) < 1:
            raise InputError(f"hires-llava: windows of {self.window} are larger than {side}x{side} tokens of a slice")
        layers = tuple(range(0, shown.depth, self.every))
        return Slices(
            shown.width, shown.text, (self.rows, self.columns), target, layers, overview=self.overview
        )  # fmt: skip
