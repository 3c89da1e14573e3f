"""MoPE: what a model's quality loses when a head, a group of units or a block is taken out decides what goes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lessen.method import Card, Context
from lessen.methods.weights._shared.pruned import CLAIMS, Pruned
from lessen.methods.weights._shared.questions import closeness, losses, mean_loss, metric, projections
from lessen.pruning.budget import Values
from lessen.pruning.choice import Choice
from lessen.pruning.costs import Costs
from lessen.pruning.layout import Layout
from lessen.pruning.scan import Question, errors, weakest_blocks
from lessen.pruning.scores import by_slope
from lessen.task import Task


class MoPE(Pruned):
    """Take each head, neuron group and block out by itself, ask how much worse the model is, and prune what is missed
    least: width first, then depth.

    Source: Lin et al. 2024, MoPE-CLIP: Structured Pruning for Efficient Vision-Language Models with Module-wise Pruning
    Error Metric (arXiv 2403.07839). Taken from there: a cross-modal quality for both towers, units sorted by slope
    before they are cut into groups, blocks ranked on the model whose width is pruned. Differences: quality is the loss
    on train batches unless `quality` says otherwise (a recall of few queries moves in steps, and many parts tie); heads
    and units compete across blocks unless `heads`, `units` or `uniform` say otherwise; `rounds` ranks again after a
    part was taken out, for single removals cannot see that two parts stand in for each other; blocks are dropped one by
    one. What stands before the part that is taken out, and the other tower, is not computed again.
    """

    card = Card(
        name="mope",
        family="weights",
        summary="Take out heads, units and blocks whose removal hurts the task's own quality least.",
        acts_on=("blocks",),
        source="Lin et al. 2024, arXiv 2403.07839",
        needs=frozenset({"gradients", "calibration"}),
        claims=CLAIMS,
    )
    quality: Literal["loss", "metric", "answers"] = Field(
        "loss",
        description="loss: of train batches; metric: the task's first one on its validation split; answers: how near "
        "they are to those of the whole model",
    )
    calibration_batches: int = Field(8, ge=1, le=100_000, description="train batches of the loss and of slopes")
    neuron_groups: int = Field(8, ge=1, le=100_000, description="groups of units of a block that are taken out as one")
    rounds: int = Field(1, ge=1, le=100, description="times that parts are ranked, each after a part was taken out")
    layers: float | None = Field(
        None, gt=0, le=1, description="share of the blocks that stays, dropped after heads and units; none: all"
    )

    def choose(
        self, layout: Layout, costs: Costs, limit: float, start: Choice, task: Task, context: Context
    ) -> Choice:  # fmt: skip
        """Return what stays after width in rounds, then depth."""
        whole, choice = costs.total(self.of), start
        for number in range(1, self.rounds + 1):
            part = number / self.rounds
            step = self.model_copy(update={
                name: None if value is None else 1 - part * (1 - value)
                for name, value in (("heads", self.heads), ("units", self.units))
            })  # fmt: skip
            values = step._errors(layout, choice, task, context)
            choice = step.fitted(costs, values, whole - part * (whole - limit), start)
        if self.layers is None:
            return choice
        may_go = [layer for layer in layout.layers if layer.groups or layer.hidden]
        drop = len(may_go) - max(len(layout.stacks), round(self.layers * len(may_go)))
        kept = weakest_blocks(layout, self._question(layout, task), choice, drop, context.log, may_go)
        return Choice(choice.heads, choice.units, kept, choice.width)

    def values(self, layout: Layout, costs: Costs, task: Task, context: Context) -> Values:  # noqa: ARG002
        """Return the error of each part of a model that is whole."""
        return self._errors(layout, Choice(), task, context)

    def _errors(self, layout: Layout, kept: Choice, task: Task, context: Context) -> Values:
        along = projections if self.quality == "answers" else losses  # answers need no labels for either
        slopes = by_slope(layout, along(layout.model, task, self.calibration_batches))
        return errors(layout, self._question(layout, task), slopes, self.neuron_groups, kept, context.log)

    def _question(self, layout: Layout, task: Task) -> Question:
        if self.quality == "metric":
            return metric(layout.model, task)
        if self.quality == "answers":
            return closeness(layout.model, task, self.calibration_batches)
        return mean_loss(layout.model, task, self.calibration_batches)
