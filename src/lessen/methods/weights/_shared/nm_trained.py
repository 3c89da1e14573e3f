"""What methods share that train weights towards N of M and then store what the pattern keeps."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator
from torch import nn

from lessen.errors import TaskError
from lessen.method import Context
from lessen.methods import retrain
from lessen.methods.sites import Site
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.sparsified import CONVOLUTIONS, Sparsified, as_written, checked
from lessen.sparsity.masking import masked
from lessen.sparsity.pattern import Pattern
from lessen.stored.linears.sparse import to_matrix
from lessen.task import Task
from lessen.train.hooks import Hook


class NMTrained(Sparsified):
    """Base of methods that train under N:M. Judged on the way is what would be exported then, and the best is kept.

    A task whose rate follows the validation score gets a cosine in its place, and none stops early: a score that falls
    while weights leave says nothing of the end.
    """

    pattern: str = Field("2:4", description="N:M, weights kept in every run of M inputs")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs to train; none: what the task trains")
    from_scratch: bool = Field(False, description="train a new model, in place of training the given one on")

    @field_validator("pattern", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        return as_written(value)

    @field_validator("pattern")
    @classmethod
    def _a_pattern(cls, value: str) -> str:
        return checked(value)

    @property
    def kept(self) -> Pattern:
        """What stays of each layer."""
        return Pattern.parse(self.pattern)

    @abstractmethod
    def forms(self, sites: Sequence[Site], steps: int) -> tuple[dict[nn.Module, nn.Module], tuple[Hook, ...]]:
        """Return what each layer's weight passes through in a training of so many steps, and hooks that move it."""

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and replace each eligible layer. Raises NothingMatchedError; TaskError for a task that cannot train."""
        if self.from_scratch:
            model = retrain.fresh(model, task, context)
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear, *CONVOLUTIONS), context, self.reject)
        settings = task.settings
        rate = "cosine" if settings.schedule == "plateau" else settings.schedule
        task = task.view(settings=dataclasses.replace(settings, patience=None, schedule=rate))
        layers, hooks = self.forms(sites, steps_of(task, self.epochs))
        with masked(layers):
            retrain.train(model, task, context, epochs=self.epochs, hooks=hooks)
        for site in sites:
            weight = to_matrix(site.module.weight.detach())
            model = self.put(model, site, weight, self.kept.mask(weight.abs()), context)
        self.remark(model, context)
        return model


def steps_of(task: Task, epochs: int | None) -> int:
    """Return the optimiser steps that a training of the task takes. Raises TaskError for an empty train split."""
    settings = task.settings
    if settings.steps is not None:
        return settings.steps
    each = settings.steps_per_epoch
    if each is None:
        batches = sum(1 for _ in task.batches("train"))
        each = -(-batches // settings.accumulate)
    if not each:
        raise TaskError(f"task {task.name!r} has an empty train split: nothing to train on")
    return each * (epochs or settings.epochs)
