"""SuperGlobal: the best of a search ordered again by vectors alone, without storing anything more."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import replace_everywhere
from lessen.stored.vectors.index import VectorIndex
from lessen.stored.vectors.refined import RefinedVectors
from lessen.stored.vectors.staged import StagedVectors
from lessen.task import Task


class SuperGlobal(ModuleMethod):
    """Order the best rows of an index again: each is averaged with its nearest among them, and so is the query.

    Source: Shao et al., ICCV 2023, arXiv 2308.06954: the reranking. Its pooling is `lessen.retrieval.pooling`.
    Differences: a row is its own nearest even among copies of it; neighbours of negative product weigh nothing, where
    the code, made for vectors without negative numbers, lets them weigh below zero; queries are taken one at a time.
    It helps where vectors of one class lie together and the first search finds half of them or more; exact neighbours
    are then no longer what comes first.
    """

    card = Card(
        name="superglobal",
        family="retrieval",
        summary="Order the best rows of an index again by their neighbours; nothing more is stored.",
        acts_on=(VectorIndex,),
        source="SuperGlobal, Shao et al. 2023, arXiv 2308.06954",
        claims=frozenset(),
    )
    first: int = Field(400, ge=1, le=1 << 20, description="rows that are ordered again (M)")
    neighbours: int = Field(9, ge=0, le=1 << 20, description="neighbours that refine a row (K)")
    beta: float = Field(0.15, ge=0, le=100, description="weight of a neighbour, times its product")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Wrap every index that can be. Raises NothingMatchedError."""
        inside = {child for one in self.parts(model, VectorIndex) for child in one.modules() if child is not one}
        found = [
            one
            for one in self.parts(model, VectorIndex)
            if one not in inside and not isinstance(one, RefinedVectors) and _whole(one)
        ]
        if not found:
            raise self.nothing_matched(model, "not refined yet, its rows of full width")
        for module in found:
            made = RefinedVectors.around(module, self.first, self.neighbours, self.beta)
            model = replace_everywhere(model, module, made)
        return model


def _whole(index: VectorIndex) -> bool:
    """Tell whether rows can be had at the width of a query."""
    return not isinstance(index, StagedVectors) or index.reduction is None or index.fine is not None
