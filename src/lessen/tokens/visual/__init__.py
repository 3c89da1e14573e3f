"""Fewer visual tokens in a language model that sees pictures, before its layers or between them.

patch = prune_visual_tokens(model, VisualPruning((Stage(2, 0.5),)))     # FastV in LLaVA
model.generate(**inputs)
patch.remove()                                                         # the model is what it was
"""

from lessen.tokens.visual.before import PoolPatch, pool_pictures
from lessen.tokens.visual.inside import VisualPatch, prune_visual_tokens
from lessen.tokens.visual.plan import Stage, VisualPruning

__all__ = ["PoolPatch", "Stage", "VisualPatch", "VisualPruning", "pool_pictures", "prune_visual_tokens"]
