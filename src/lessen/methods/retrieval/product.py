"""An index of product codes: one byte for each group of numbers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from lessen.errors import ConfigError
from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.retrieval._shared.indexes import flat_indexes
from lessen.methods.sites import replace_everywhere
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.stored.vectors.index import VectorIndex
from lessen.stored.vectors.product import ProductVectors
from lessen.stored.vectors.staged import StagedVectors
from lessen.task import Task


class ProductIndex(ModuleMethod):
    """Cut vectors into groups of numbers and keep, for each, the nearest of 256 centres.

    Source: Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011. Difference: products
    in place of distances, with float32 queries (asymmetric); centres without points move beside the fullest.
    """

    card = Card(
        name="index-pq",
        family="retrieval",
        summary="Store the vectors of a flat index as product codes, a byte a group.",
        acts_on=(FlatVectors,),
        source="Jegou et al. 2011, product quantisation",
    )
    width: int = Field(8, ge=1, le=1024, description="numbers of a group")
    fine: Literal["int8"] | None = Field(None, description="codes that order the best again: int8, or none")
    widen: int = Field(10, ge=1, le=10_000, description="candidates that the fine codes order, for each asked for")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace every flat index. Raises NothingMatchedError; ConfigError where a width does not divide."""
        for module in flat_indexes(self, model):
            if module.dim % self.width:
                raise ConfigError(
                    f"{self.card.name}: width = {self.width} does not divide the {module.dim} numbers of a vector"
                )
            groups = module.dim // self.width
            made: VectorIndex = ProductVectors.of(module.vectors, context.seed, groups=groups)
            if self.fine is not None:
                made = StagedVectors.around(made, Int8Vectors.of(module.vectors), widen=self.widen)
            model = replace_everywhere(model, module, made)
        return model
