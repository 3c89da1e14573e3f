"""Random pruning of Transformers: the control that every ranking must beat."""

from __future__ import annotations

from typing import ClassVar

from lessen.method import Card, Context
from lessen.methods.weights._shared.pruned import CLAIMS, Pruned
from lessen.pruning.budget import Values
from lessen.pruning.costs import Costs
from lessen.pruning.layout import Layout
from lessen.pruning.scores import by_chance
from lessen.task import Task


class RandomPruning(Pruned):
    """Keep heads and feed-forward units drawn at random: equal cost, no knowledge."""

    card = Card(
        name="random-pruning",
        family="weights",
        summary="Take out heads and feed-forward units at random: the control.",
        acts_on=("blocks",),
        source="control of our own",
        claims=CLAIMS,
    )
    by_cost: ClassVar[bool] = False

    def values(self, layout: Layout, costs: Costs, task: Task, context: Context) -> Values:  # noqa: ARG002
        """Return uniform draws."""
        return by_chance(layout, context.generator)
