"""Token compression for vision Transformers: scores, row maps, and one `apply` for every reduction.

patch = reduce_tokens(model, Merge(removed=(8,) * 12))     # ToMe in a ViT, CLIP, SigLIP or DINOv2 tower
patch.remove()                                             # the model is what it was
"""

from lessen.tokens.patch import Patch, reduce_tokens
from lessen.tokens.reducers import Keep, Merge, RankMerge, Reducer
from lessen.tokens.rows import Plan
from lessen.tokens.state import TokenState

__all__ = ["Keep", "Merge", "Patch", "Plan", "RankMerge", "Reducer", "TokenState", "reduce_tokens"]
