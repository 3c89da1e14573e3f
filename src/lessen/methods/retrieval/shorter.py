"""An index of shorter vectors: the first numbers, or principal directions. The baselines of every other form."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.retrieval._shared.indexes import flat_indexes
from lessen.methods.sites import replace_everywhere
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.stored.vectors.staged import Reduction, StagedVectors
from lessen.task import Task


class ShorterIndex(ModuleMethod):
    """Keep a share of the numbers of every vector, and round what is left to int8 where asked.

    `by: first` is what encoders trained for it allow (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147); `by: pca`
    projects on the directions that hold most of the vectors' squares.
    """

    card = Card(
        name="index-shorter",
        family="retrieval",
        summary="Store fewer numbers of each vector of a flat index.",
        acts_on=(FlatVectors,),
        source="Matryoshka, Kusupati et al. 2022, arXiv 2205.13147; principal directions",
    )
    share: float = Field(0.5, gt=0, le=1, description="share of the numbers that stay")
    by: Literal["pca", "first"] = Field("pca", description="principal directions, or the first numbers")
    codes: Literal["flat", "int8"] = Field("flat", description="how what stays is held")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace every flat index. Raises NothingMatchedError."""
        for module in flat_indexes(self, model):
            kept = max(1, round(self.share * module.dim))
            reduction = (
                Reduction.principal(module.vectors, kept) if self.by == "pca" else Reduction(module.dim, kept, False)
            )
            kind = FlatVectors if self.codes == "flat" else Int8Vectors
            made = StagedVectors.around(kind.of(reduction(module.vectors)), reduction=reduction)
            model = replace_everywhere(model, module, made)
        return model
