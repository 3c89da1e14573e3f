"""Built-in tasks: reference models and data sets that methods are judged on, found by walking this package."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from lessen import usercode
from lessen.registry import Registry, classes_of
from lessen.task import Task


@lru_cache(maxsize=1)
def builtin_tasks() -> dict[str, type[Task]]:
    """Return the tasks of this package by name; a task is listed once it declares `Options`."""
    found = {cls.name: cls for cls in classes_of(__name__, __path__, Task) if cls.Options}  # type: ignore[type-abstract]
    return dict(sorted(found.items()))


TASKS: Registry[Task] = Registry("task", Task, builtin_tasks, "lessen.tasks")  # type: ignore[type-abstract]


def get_task(description: Any, where: str = "task", *, own: bool = False) -> Task:
    """Build a task from `name` or `{name: ..., option: value}`.

    Args:
        own: let the name be FILE.py:NAME or MODULE:NAME, code of the user that is imported; only for what the user
            wrote, never for what a file of results says.

    Raises:
        ConfigError: no such task, an option that it does not have, or own code that makes no task.
    """
    name, options = TASKS.named(description, where)
    if own and usercode.is_own(name):
        return TASKS.own(name, options)
    cls, chosen = TASKS.chosen(name, options, where)
    return cls(chosen)  # type: ignore[call-arg]


def architecture_of(description: Any, where: str = "task") -> Callable[[], nn.Module]:
    """Return what builds the untrained model of a described task, without its data where options alone tell it.

    Raises:
        ConfigError: no such task or option.
        DataError: the task's model depends on data that are not there.
    """
    cls, chosen = TASKS.chosen(*TASKS.named(description, where), where)
    return cls.architecture(chosen)
