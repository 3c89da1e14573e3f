"""Budgets that cannot be met, told before any reference is trained: tables are compressed on an untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from lessen.errors import BudgetError, LessenError
from lessen.log import SILENT, Log
from lessen.recipe import Recipe
from lessen.task import Task


def check_budgets(recipes: Sequence[Recipe], task: Task, log: Log = SILENT) -> dict[str, BudgetError]:
    """Return the recipes whose share of the tables cannot be reached, each with its error, and note each in the log.

    The others run; these are recorded as failed when their turn comes. A model that is not trained here is not looked
    at: it costs nothing to find out later.

    Raises:
        BudgetError: no recipe of several can be reached, or the only one cannot.
    """
    asking = [] if task.pretrained else [recipe for recipe in recipes if _asks(recipe)]
    refused: dict[str, BudgetError] = {}
    for done, recipe in enumerate(asking):
        log.progress("check budgets", done, len(asking))
        try:
            with suppress(_Other):
                _rehearse(recipe, task)
        except BudgetError as error:
            refused[recipe.name] = error
            log.note(f"recipe {recipe.name!r} will fail: {error}")
    if asking:
        log.progress("check budgets", len(asking), len(asking))
    if refused and len(refused) == len(recipes):
        name, first = next(iter(refused.items()))
        raise BudgetError(f"no recipe of this study can be run; recipe {name!r}: {first}", nearest=first.nearest)
    return refused


class _Other(Exception):
    """A rehearsal ended with something that is the recipe's own affair."""


def _rehearse(recipe: Recipe, task: Task) -> None:
    try:
        recipe.rehearse(task)
    except BudgetError:
        raise
    except LessenError as error:  # weights that are not trained may match nothing
        raise _Other from error


def _asks(recipe: Recipe) -> bool:
    return any(getattr(step, "share", None) is not None for step in recipe.steps)
