"""SD-DINO: an index of two towers' features, each on fewer directions and of equal say."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from lessen.errors import ConfigError
from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.retrieval._shared.indexes import flat_indexes
from lessen.methods.sites import replace_everywhere
from lessen.stored.vectors.flat import FlatVectors
from lessen.stored.vectors.fused import FusedVectors
from lessen.task import Task


class SDDino(ModuleMethod):
    """Hold features of two towers, side by side in a flat index, as fused ones of fewer numbers.

    Source: Zhang et al., NeurIPS 2023, arXiv 2305.15347: each tower's features on their principal directions, of length
    1, weighed and set side by side. Differences: ONE basis for all rows, fitted to the index, where the paper fits one
    for each pair of pictures and so can index nothing (`lessen.retrieval.fusing.co_pca` is that); any two towers, each
    of one layer. Fusion helps where both towers are about as good; where one is much worse it gives nothing: choose
    `alpha` on pairs that are not judged.
    """

    card = Card(
        name="sd-dino",
        family="retrieval",
        summary="Fuse the features of two towers in a flat index, each on fewer directions and of equal say.",
        acts_on=(FlatVectors,),
        source="A Tale of Two Features, Zhang et al. 2023, arXiv 2305.15347",
    )
    split: int | None = Field(
        None, ge=1, le=1 << 20, description="numbers of the first tower; none: half of a vector's"
    )
    share: float = Field(0.5, gt=0, le=1, description="share of all numbers that stay; each tower gives half of them")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the first tower's cosine; the other's is the rest")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace every flat index. Raises NothingMatchedError; ConfigError where a split leaves a tower nothing."""
        for module in flat_indexes(self, model):
            split = module.dim // 2 if self.split is None else self.split
            if not 1 <= split < module.dim:
                raise ConfigError(f"{self.card.name}: split = {split} leaves a tower none of {module.dim} numbers")
            left, right = _shared(round(self.share * module.dim), split, module.dim - split)
            made = FusedVectors.of(module.vectors, split=split, left=left, right=right, alpha=self.alpha)
            model = replace_everywhere(model, module, made)
        return model


def _shared(total: int, first: int, second: int) -> tuple[int, int]:
    """Return numbers of each tower: half of the total each, or what a narrow one has and the other the rest."""
    left = min(first, max(1, total // 2, total - second))
    return left, min(second, max(1, total - left))
