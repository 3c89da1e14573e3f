"""An index of int8 codes: a quarter of the bytes, one scale a vector."""

from __future__ import annotations

from torch import nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import replace_everywhere
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.task import Task


class Int8Index(ModuleMethod):
    """Round the vectors of a flat index to int8, each on a grid of its own, and queries as they come.

    Source: symmetric rounding by the largest value of a vector, as the scalar quantisers of faiss do by the range of a
    dimension (Douze et al. 2024, arXiv 2401.08281). Difference: a scale for each vector, not for each dimension, so
    that products are of integers.
    """

    card = Card(
        name="index-int8",
        family="retrieval",
        summary="Store the vectors of a flat index as int8 codes.",
        acts_on=(FlatVectors,),
        source="scalar quantisation, Douze et al. 2024, arXiv 2401.08281",
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace every flat index. Raises NothingMatchedError."""
        found = self.parts(model, FlatVectors)
        if not found:
            raise self.nothing_matched(model)
        for module in found:
            model = replace_everywhere(model, module, Int8Vectors.of(module.vectors))
        return model
