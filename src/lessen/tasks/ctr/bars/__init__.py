"""The BARS-CTR protocol: published splits, settings and results, run and judged here (arXiv 2009.05794, 2205.09626)."""

from lessen.tasks.ctr.bars.agreement import Agreement, agreement
from lessen.tasks.ctr.bars.protocol import RunSettings, read_result, run_bars
from lessen.tasks.ctr.bars.recipes import Recipe, load_recipe, published_models, variants

__all__ = [
    "Agreement",
    "Recipe",
    "RunSettings",
    "agreement",
    "load_recipe",
    "published_models",
    "read_result",
    "run_bars",
    "variants",
]
