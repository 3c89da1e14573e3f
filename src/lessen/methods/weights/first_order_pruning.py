"""First-order pruning of Transformers: parts whose removal changes the loss little, by its slope."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card, Context
from lessen.methods.weights._shared.pruned import CLAIMS, Pruned
from lessen.methods.weights._shared.questions import losses
from lessen.pruning.budget import Values
from lessen.pruning.costs import Costs
from lessen.pruning.layout import Layout
from lessen.pruning.scores import by_slope
from lessen.task import Task


class FirstOrderPruning(Pruned):
    """Keep the heads and units along which the loss is steep: the mean square of its slope along a factor on the part.

    Source: Molchanov et al. 2019, Importance Estimation for Neural Network Pruning (arXiv 1906.10771), its gates; for
    heads Michel et al. 2019, Are Sixteen Heads Really Better than One? (arXiv 1905.10650), which takes absolute values
    and divides by the norm of a layer. Differences: squares an example, one ranking over all blocks by value per cost,
    and no rounds of training in between.
    """

    card = Card(
        name="first-order-pruning",
        family="weights",
        summary="Take out heads and feed-forward units along which the loss is flat.",
        acts_on=("blocks",),
        source="Molchanov et al. 2019, arXiv 1906.10771",
        needs=frozenset({"gradients", "calibration"}),
        claims=CLAIMS,
    )
    calibration_batches: int = Field(8, ge=1, le=100_000, description="train batches whose loss is looked at")

    def values(self, layout: Layout, costs: Costs, task: Task, context: Context) -> Values:  # noqa: ARG002
        """Return the mean squared slopes."""
        return by_slope(layout, losses(layout.model, task, self.calibration_batches))
