"""Every way of showing a small LLaVA of `seeing_models` fewer tokens of its pictures: builders of patches."""

from __future__ import annotations

from lessen.tokens.visual import Stage, VisualPruning, pool_pictures, prune_visual_tokens
from lessen.tokens.visual.free_video import FreeVideoLLM, Paths
from lessen.tokens.visual.fused import ADEMVL
from lessen.tokens.visual.hires import HiResLLaVA
from lessen.tokens.visual.slime import SliME

PATHS = Paths(slow=1, middle=1, fast=2, coarse=(1, 1), roi=0.5)
WAYS = {
    "fastv": lambda model: prune_visual_tokens(model, VisualPruning((Stage(1, 0.5),))),
    "determinantal": lambda model: prune_visual_tokens(model, VisualPruning((Stage(2, 0.25),), "determinant", rope=False)),
    "deco": lambda model: pool_pictures(model, (2, 2)),
    "slime": lambda model: SliME(32, 32, side=2, overview=4, heads=2).eval().attach(model),
    "hires": lambda model: HiResLLaVA(32, 32, (1, 1), (2, 2), overview=False).eval().attach(model),
    "adem": lambda model: ADEMVL(32, 32, 1, (16, 4), 8, 4).eval().attach(model),
    "free video": lambda model: FreeVideoLLM(PATHS).attach(model),
}  # fmt: skip
