"""Free Video-LLM: a film seen by the frames and regions that its question asks for; nothing is trained."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card
from lessen.methods.tokens._shared.sights import Shown, SightMethod
from lessen.tokens.visual.free_video import FreeVideoLLM as Frames
from lessen.tokens.visual.free_video import Paths
from lessen.tokens.visual.splice import Sight


class FreeVideoLLM(SightMethod):
    """Let a prompt see all its pictures as the frames of one film, along a slow, a middle and a fast path.

    Free Video-LLM, 2024 (arXiv 2410.10441); see `lessen.tokens.visual.free_video` for what is done and how it differs:
    the words' nearness is taken in the language model's own space, so that no second tower is stored; in a model whose
    projector was not trained to bring words and pictures together it tells little, so compare with `roi: 1` and few
    even frames (`slow: 0`). Defaults are the published ones; training with the sight in place is ours.
    """

    card = Card(
        name="free-video-llm",
        family="tokens",
        summary="Show a film by the frames and regions that the words ask for, and by a few tokens of every frame.",
        acts_on=("visual tokens",),
        source="arXiv 2410.10441",
        claims=frozenset({"macs", "kv_bytes"}),
    )
    slow: int = Field(3, ge=0, le=10_000, description="frames that the words choose")
    middle: int = Field(5, ge=0, le=10_000, description="frames evenly spaced")
    fast: int = Field(50, ge=0, le=100_000, description="frames of the coarse path")
    coarse: tuple[int, int] | None = Field(
        None, description="rows and columns of a frame on the coarse path; none: a sixth of its sides, 4 of 24"
    )
    roi: float = Field(0.8, gt=0, le=1, description="share of a frame kept around what the words ask for; 1: all")
    official: bool = Field(False, description="the published geometry, in which the region is no rectangle")

    def sight(self, shown: Shown) -> Sight:
        """Return the three paths."""
        side = max(1, shown.side(self.card.name) // 6)
        coarse = self.coarse or (side, side)
        return Frames(Paths(self.slow, self.middle, self.fast, coarse, self.roi, self.official))
