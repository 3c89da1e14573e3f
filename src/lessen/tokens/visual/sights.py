"""Every sight that an artifact may name, and the one that a model has."""

from __future__ import annotations

from torch import nn

from lessen.tokens.visual.free_video import FreeVideoLLM
from lessen.tokens.visual.fused import ADEMVL
from lessen.tokens.visual.gates import VideoGates
from lessen.tokens.visual.hires import HiResLLaVA
from lessen.tokens.visual.slime import SliME
from lessen.tokens.visual.splice import SPLICE_MARK, SplicePatch

SIGHTS = (ADEMVL, FreeVideoLLM, HiResLLaVA, SliME)
GATES = VideoGates


def sight_of(model: nn.Module) -> SplicePatch | None:
    """Return the sight that is in place in `model`, or None."""
    patch = model.__dict__.get(SPLICE_MARK)
    return patch if isinstance(patch, SplicePatch) else None
