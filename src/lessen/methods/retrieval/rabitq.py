"""An index of 1, 2 or 4 bits a number after a random turn, with better codes for the best of it where asked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.retrieval._shared.indexes import flat_indexes
from lessen.methods.sites import replace_everywhere
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.stored.vectors.index import VectorIndex
from lessen.stored.vectors.rotated import RotatedVectors
from lessen.stored.vectors.staged import StagedVectors
from lessen.task import Task


class RaBitQ(ModuleMethod):
    """Turn vectors at random and keep a few bits of each number; scores are right on average over turns.

    Source: Gao and Long 2024, arXiv 2405.12497 (one bit), and 2409.09913 (more). Differences: one centre, the mean of
    all vectors, in place of one a cluster; the step of the levels comes from a short grid in place of a full sweep;
    queries are rounded to int8.
    """

    card = Card(
        name="index-rabitq",
        family="retrieval",
        summary="Store the vectors of a flat index in 1, 2 or 4 bits a number.",
        acts_on=(FlatVectors,),
        source="RaBitQ, Gao and Long 2024, arXiv 2405.12497",
    )
    bits: Literal[1, 2, 4] = Field(4, description="bits of a number")
    fine: Literal["int8"] | None = Field(None, description="codes that order the best again: int8, or none")
    widen: int = Field(10, ge=1, le=10_000, description="candidates that the fine codes order, for each asked for")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace every flat index. Raises NothingMatchedError."""
        for module in flat_indexes(self, model):
            made: VectorIndex = RotatedVectors.of(module.vectors, context.seed, bits=self.bits)
            if self.fine is not None:
                made = StagedVectors.around(made, Int8Vectors.of(module.vectors), widen=self.widen)
            model = replace_everywhere(model, module, made)
        return model
