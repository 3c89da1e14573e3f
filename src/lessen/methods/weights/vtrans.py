"""VTrans: information-bottleneck masks on heads and units, trained under a budget, decide what goes."""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.adapt._shared.answers import Answers
from lessen.methods.weights._shared.pruned import CLAIMS, Pruned
from lessen.pruning.bottleneck import Budget
from lessen.pruning.budget import Values
from lessen.pruning.choice import Choice
from lessen.pruning.costs import Costs
from lessen.pruning.layout import Layout
from lessen.pruning.trained_masks import MaskHook, Masks
from lessen.task import Task
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings
from lessen.train.teachers import Teacher


class VTrans(Pruned):
    """Multiply every head and unit by noise of a trained mean and variance; those whose noise drowns them go.

    Source: VTrans: Accelerating Transformer Compression with Variational Information Bottleneck based Pruning, 2024
    (arXiv 2406.05276); masks, soft counts and the Lagrangian as in the code of its follow-up TVA-Prune. `train: masks`
    leaves the weights (Faster-VTrans), `train: all` moves them too, beside a teacher: the model that was given.
    Differences: the budget is that of any cost here, multiply-adds or parameters; counts are brought to it exactly by
    moving the threshold, in steps of `multiple`; means of kept masks go into the weights that follow; masks start
    noisier and their divergence weighs more (there: -9 and 1e-6), so that hundreds of steps do for thousands; masks may
    learn from the answers of the model as it was (`by: teacher`), where labels are few; the teacher's term is on
    answers only; the residual width is pruned by `width`, by the size of weights and not by masks.
    """

    card = Card(
        name="vtrans",
        family="weights",
        summary="Train noise masks on heads and units under a budget; what drowns in noise goes.",
        acts_on=("blocks",),
        source="arXiv 2406.05276",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=CLAIMS,
    )
    by_cost: ClassVar[bool] = False
    train: Literal["masks", "all"] = Field("masks", description="masks alone, or weights with a teacher as well")
    by: Literal["labels", "teacher"] = Field(
        "labels", description="masks: learn from labels, or from the answers of the model as it was, without labels"
    )
    steps: int = Field(300, ge=1, le=10**7, description="steps in which masks are trained")
    mask_rate: float = Field(0.2, gt=0, le=10, description="learning rate of masks; multipliers have twice that")
    kl: float | None = Field(
        None, ge=0, le=10, description="factor on the divergence, less for more steps; none: 3e-4, by the teacher 3e-6"
    )
    head_weight: float = Field(256.0, ge=0, le=1e6, description="factor on the divergence of heads")
    warmup: float = Field(0.3, ge=0, le=1, description="share of the steps in which the target grows")
    variance: float = Field(-5.0, ge=-20, le=0, description="logarithm of the variance that masks start with")
    weight: float = Field(1.0, ge=0, le=1e6, description="train: all: factor on the teacher's term")

    def choose(
        self, layout: Layout, costs: Costs, limit: float, start: Choice, task: Task, context: Context
    ) -> Choice:  # fmt: skip
        """Train masks, move the threshold to the budget, and put the means of what stays into the weights."""
        rate = self.mask_rate if self.train == "masks" else task.settings.learning_rate
        factor = self.mask_rate / rate
        masks = Masks(layout, context.generator, factor, self.variance)
        goal = 1 - limit / costs.total(self.of, start)
        budget = Budget(goal, int(self.warmup * self.steps), 2 * factor)
        kl = (3e-6 if self.by == "teacher" else 3e-4) if self.kl is None else self.kl
        hook = MaskHook(masks, budget, costs, self.of, start, kl, self.head_weight)
        self._train(layout.model, task.view(settings=self._settings(task, rate)), hook, context)
        context.findings["sparsity"] = {"asked": round(goal, 5), "soft": round(hook.sparsity, 5)}
        choice = self.fitted(costs, self._values(masks), limit, start)
        masks.fold()
        return choice

    def values(self, layout: Layout, costs: Costs, task: Task, context: Context) -> Values:  # noqa: ARG002
        """Return the values of untrained masks: all alike but for their start."""
        return self._values(Masks(layout, context.generator, 1.0, self.variance))

    def _values(self, masks: Masks) -> Values:
        return Values(
            {path: -one.log_alpha().detach() for path, one in masks.heads.items()},
            {path: -one.log_alpha().detach() for path, one in masks.units.items()},
        )

    def _settings(self, task: Task, rate: float) -> FitSettings:
        return dataclasses.replace(
            task.settings, steps=self.steps, steps_per_epoch=self.steps, epochs=1, learning_rate=rate, patience=None,
            keep="last", schedule="linear", minimum_learning_rate=0.0, warmup_steps=0, decay_steps=None,
            optimizer="adamw", weight_decay=0.0,
        )  # fmt: skip

    def _train(self, model: nn.Module, task: Task, hook: Hook, context: Context) -> None:
        if self.train == "all":
            if context.original is None:
                raise TaskError("vtrans with train: all learns from the model that a recipe was given; run it in one")
            teacher = Teacher(copy.deepcopy(context.original), task.forward)
            retrain.train(model, task, context, hooks=(Answers(teacher, task, weight=self.weight), hook))
            model.eval()
            return
        wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
        try:
            model.requires_grad_(False)
            taught: tuple[Hook, ...] = ()
            if self.by == "teacher":
                taught = (Answers(Teacher(copy.deepcopy(model), task.forward), task, task_weight=0.0),)
            retrain.train(model, task, context, hooks=(*taught, hook))
        finally:
            for parameter, before in wanted.items():
                parameter.requires_grad_(before)
        model.eval()
