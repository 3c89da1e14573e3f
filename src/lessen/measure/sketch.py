"""A model in the form that a recipe would leave it: nothing is trained, and calibrated only where data decide the form.

Its bytes, multiply-adds and operations are those of the compact model; what it answers means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lessen.artifact.delta import base_of
from lessen.artifact.folder import stored_size
from lessen.errors import LessenError, NothingMatchedError
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.train.run import FitResult


@dataclass(frozen=True)
class Sketch:
    """A model in its compact form, or why there is none."""

    model: nn.Module | None
    why: str = ""
    """Why only a run can tell the form; empty where `model` is it."""
    matches: bool = True
    """Whether the recipe finds anything in the model to act on."""


def sketch(recipe: Recipe, model: nn.Module, task: Task) -> Sketch:
    """Return `model` in the form that `recipe` would leave it; `model` itself is not changed."""
    try:
        for step in recipe.steps:
            if step.form_by_training:
                return Sketch(None, f"the training of {step.card.name} finds the form")
        return Sketch(recipe.apply(model, task.view(train=_untrained), form_only=True)[0])
    except LessenError as error:
        return Sketch(None, str(error).partition(";")[0], not isinstance(error, NothingMatchedError))


def bytes_of(compact: nn.Module, model: nn.Module, task: Task, recipe: Recipe) -> int:
    """Return the bytes that an artifact of `compact` would store, by arithmetic."""
    described = task.describe() if task.Options is not None else None
    return stored_size(compact, model, described, base_of(model) if recipe.keeps_base else None)


def _untrained(*_: Any, **__: Any) -> FitResult:
    return FitResult(float("nan"), 0, 0, 0, 0.0)
