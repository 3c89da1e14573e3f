"""A small module of every stored class that says what a model sees: they hold what a host's forward runs, and none."""

from __future__ import annotations

from lessen.tokens.reducers import reducer_from
from lessen.tokens.stored import TokenReduction
from lessen.tokens.visual.free_video import FreeVideoLLM, Paths
from lessen.tokens.visual.fused import ADEMVL
from lessen.tokens.visual.gates import VideoGates
from lessen.tokens.visual.hires import HiResLLaVA
from lessen.tokens.visual.plan import Stage, VisualPruning
from lessen.tokens.visual.slime import SliME
from lessen.tokens.visual.stored import StoredPooling, StoredPruning

VISUAL = {
    "token reduction": (lambda: TokenReduction(reducer_from({"reducer": "merge", "removed": [2, 2]})), None),
    "visual pruning": (lambda: StoredPruning(VisualPruning((Stage(1, 0.5, stride=3), Stage(3, 0.25)))), None),
    "picture pooling": (lambda: StoredPooling((3, 4), (6, 8)), None),
    "video gates": (lambda: VideoGates(5), None),
    "free video": (lambda: FreeVideoLLM(Paths(slow=1, middle=1, fast=2, coarse=(1, 1), roi=0.5)), None),
    "slime": (lambda: SliME(16, 16, side=2, overview=3, heads=2), None),
    "hires": (lambda: HiResLLaVA(16, 16, (4, 4), (2, 2), layers=(0,), bottleneck=4), None),
    "adem": (lambda: ADEMVL(16, 16, layers=1, sizes=(4, 1), inner=4, adapter=2), None),
}
"""Builders; None: no forward of their own."""
