"""Magnitude pruning of Transformers: heads and units whose weights are small go."""

from __future__ import annotations

from lessen.method import Card, Context
from lessen.methods.weights._shared.pruned import CLAIMS, Pruned
from lessen.pruning.budget import Values
from lessen.pruning.costs import Costs
from lessen.pruning.layout import Layout
from lessen.pruning.scores import by_magnitude
from lessen.task import Task


class MagnitudePruning(Pruned):
    """Keep the heads and feed-forward units with the largest mean square of all weights that belong to them.

    The usual baseline (Li et al. 2016, Pruning Filters for Efficient ConvNets, arXiv 1608.08710, which ranks filters
    by the sum of their absolute weights). Differences: squares, all matrices that a part touches, and one ranking over
    all blocks, by mean square so that large parts have no advantage.
    """

    card = Card(
        name="magnitude-pruning",
        family="weights",
        summary="Take out heads and feed-forward units whose weights are small.",
        acts_on=("blocks",),
        source="Li et al. 2016, arXiv 1608.08710",
        claims=CLAIMS,
    )

    def values(self, layout: Layout, costs: Costs, task: Task, context: Context) -> Values:  # noqa: ARG002
        """Return the sum of squares of each part's weights."""
        return by_magnitude(layout)
