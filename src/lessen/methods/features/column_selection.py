"""Column selection by permutation: drop the fields that a trained model does not rely on, and check by retraining."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from lessen.errors import BudgetError
from lessen.method import Card, Context, Method
from lessen.methods.features._shared.effects import Effect, field_effects, redundant_groups
from lessen.methods.features._shared.fields import OWN_MODELS, click_task, names_of, retrained
from lessen.task import Task
from lessen.tasks.ctr.base import ClickTask
from lessen.tasks.ctr.layers import FieldVectors


class ColumnSelection(Method):
    """Shuffle each field of the validation rows; keep those whose shuffling raises the log loss beyond its error.

    Fields that determine each other are shuffled together, since each alone would look useless, and the strongest of
    such a group is kept. The narrower model is trained anew; if its validation score falls by more than `tolerance`
    below that of the model given, the strongest half of the dropped fields comes back, up to `retries` times. The
    test split is never read.

    `explain` fits a decision tree to the given model's logits on the kept fields and records its rules, its fidelity on
    validation rows and its accuracy against the labels (needs the extra `baselines`).

    Source: the pipeline of Karim et al., arXiv 2208.13405 (rank, cut, surrogate); permutation importance in its
    standard form, whose noise model the paper does not publish. No attention probing: it is not importance.
    """

    card = Card(
        name="column-selection",
        family="features",
        summary="Drop the fields that a trained click model does not rely on; retrain the narrower model.",
        acts_on=(FieldVectors,),
        source="arXiv 2208.13405; permutation importance",
        needs=frozenset({"labels", "training"}),
        claims=frozenset({"bytes", "macs"}),
    )
    keep: int | None = Field(None, ge=1, le=10_000, description="fields to keep; empty decides by the threshold")
    threshold: float = Field(3.0, ge=0, le=100, description="standard errors that the effect of a kept field exceeds")
    repeats: int = Field(3, ge=1, le=100, description="shufflings per field")
    redundancy: float = Field(0.95, gt=0, le=1, description="share of information from which fields count as one")
    tolerance: float = Field(0.005, ge=0, le=1, description="fall of the validation score that is accepted")
    retries: int = Field(1, ge=0, le=10, description="times that dropped fields may come back")
    explain: bool = Field(False, description="also fit and record a readable decision tree")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Rank, cut, retrain, check.

        Raises:
            NothingMatchedError: the model has no field vectors, or every field earns its place.
            TaskError: the task has no columns, or an earlier step already changed the model.
            BudgetError: no id field would be left.
        """
        if not any(isinstance(module, FieldVectors) for module in model.modules()):
            raise self.nothing_matched(model, OWN_MODELS)
        clicks = click_task(task, model, self.card.name)
        effects = self._effects(model, clicks, context)
        kept = self._choose(effects, clicks)
        if len(kept) == len(names_of(clicks.layout)):
            raise self.nothing_matched(model, "every field earns its place")
        if self.explain:
            from lessen.methods.features._shared.explain import explain

            context.findings["surrogate"] = explain(model, clicks, kept, context.seed)
        before = task.score(model, "validation")
        narrow = retrained(clicks, kept, context)
        after = task.score(narrow, "validation")
        for _ in range(self.retries):
            dropped = [name for name in effects if name not in kept]
            if after >= before - self.tolerance or len(dropped) < 2 or self.keep is not None:
                break
            kept += dropped[: (len(dropped) + 1) // 2]
            narrow = retrained(clicks, kept, context)
            after = task.score(narrow, "validation")
        context.findings["fields"] = {"kept": kept, "dropped": [name for name in effects if name not in kept]}
        context.findings["check"] = {
            "score_before": before,
            "score_after": after,
            "passed": after >= before - self.tolerance,
        }
        return narrow

    def _effects(self, model: nn.Module, task: ClickTask, context: Context) -> dict[str, tuple[Effect, list[str]]]:
        """Return for each field, strongest first, its own effect and its group; record them."""
        groups = redundant_groups(task, self.redundancy)
        alone = [[name] for name in names_of(task.layout)]
        several = [group for group in groups if len(group) > 1]
        generator = torch.Generator().manual_seed(int(context.generator.initial_seed()))
        found = field_effects(model, task, [*alone, *several], self.repeats, generator)
        own = dict(zip(names_of(task.layout), found, strict=False))
        together = {name: effect for group, effect in zip(several, found[len(alone) :], strict=True) for name in group}
        order = sorted(own, key=lambda name: own[name].effect, reverse=True)
        context.findings["effects"] = {
            name: {"nats": own[name].effect, "z": own[name].z, **_group_note(name, groups, together)} for name in order
        }
        members = {name: group for group in groups for name in group}
        return {name: (together.get(name, own[name]), members[name]) for name in order}

    def _choose(self, effects: dict[str, tuple[Effect, list[str]]], task: ClickTask) -> list[str]:
        """Return the fields to keep, strongest first: one of each group, those beyond the threshold or the best."""
        kept: list[str] = []
        for name, (effect, group) in effects.items():
            enough = effect.z > self.threshold if self.keep is None else len(kept) < self.keep
            if enough and not any(other in kept for other in group):
                kept.append(name)
        if not any(field.name in kept for field in task.layout.fields):
            raise BudgetError(f"{self.card.name} would keep no id field; lower threshold, or set keep")
        return kept


def _group_note(name: str, groups: list[list[str]], together: dict[str, Effect]) -> dict[str, Any]:
    if name not in together:
        return {}
    others = next(group for group in groups if name in group)
    return {"same_as": [other for other in others if other != name], "nats_together": together[name].effect}
