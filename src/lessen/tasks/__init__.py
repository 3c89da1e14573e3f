"""Built-in tasks: reference models and data sets that methods are judged on, found by walking this package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError
from torch import nn

from lessen import usercode
from lessen.errors import ConfigError, explain, nearest
from lessen.task import Task, TaskOptions


@lru_cache(maxsize=1)
def builtin_tasks() -> dict[str, type[Task]]:
    """Return the tasks of this package by name; a task is listed once it declares `Options`."""
    found: dict[str, type[Task]] = {}
    for info in pkgutil.walk_packages(__path__, prefix=f"{__name__}."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Task) and value.__module__ == info.name and value.Options:
                found[value.name] = value
    return dict(sorted(found.items()))


def get_task(description: Any, where: str = "task", *, own: bool = False) -> Task:
    """Build a task from `name` or `{name: ..., option: value}`.

    Args:
        own: let the name be FILE.py:NAME or MODULE:NAME, code of the user that is imported; only for what the user
            wrote, never for what a file of results says.

    Raises:
        ConfigError: no such task, an option that it does not have, or own code that makes no task.
    """
    name, options = _named(description, where)
    if own and usercode.is_own(name):
        task: Task = usercode.made(name, Task, "lessen.Task", options)
        task.origin = {"name": name, **options}
        return task
    cls, chosen = _chosen(name, options, where)
    return cls(chosen)  # type: ignore[call-arg]


def architecture_of(description: Any, where: str = "task") -> Callable[[], nn.Module]:
    """Return what builds the untrained model of a described task, without its data where options alone tell it.

    Raises:
        ConfigError: no such task or option.
        DataError: the task's model depends on data that are not there.
    """
    cls, chosen = _chosen(*_named(description, where), where)
    return cls.architecture(chosen)


def _named(description: Any, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(description, str):
        description = {"name": description}
    if not isinstance(description, Mapping) or "name" not in description:
        raise ConfigError(f"{where}: expected a task name or a mapping with the key 'name'")
    return str(description["name"]), {str(key): value for key, value in description.items() if key != "name"}


def _chosen(name: str, options: dict[str, Any], where: str) -> tuple[type[Task], TaskOptions]:
    cls = builtin_tasks().get(name)
    if cls is None:
        points = {point.name: point for point in entry_points(group="lessen.tasks")}
        if name not in points:
            raise ConfigError(f"{where}: no task is called {name!r}; {nearest(name, [*builtin_tasks(), *points])}")
        cls = points[name].load()
    options_type = cls.Options
    if options_type is None:
        raise ConfigError(f"{where}: {name} cannot be built from a study file: it declares no Options")
    try:
        return cls, options_type(**options)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, name, options_type.model_fields)}") from error
