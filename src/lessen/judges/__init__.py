"""Judges beside a study's task: evaluation suites without training, found by walking this package.

A suite is one file with one `Judge` class that declares `Options`; third parties name theirs under the entry point
`lessen.judges`, users as FILE.py:NAME. Every built-in task is a judge too.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from lessen import usercode
from lessen.errors import ConfigError, explain, nearest
from lessen.task import Judge
from lessen.tasks import builtin_tasks


@lru_cache(maxsize=1)
def builtin_judges() -> dict[str, type[Judge]]:
    """Return the suites of this package and the built-in tasks, by name."""
    found: dict[str, type[Judge]] = dict(builtin_tasks())
    for info in pkgutil.walk_packages(__path__, prefix=f"{__name__}."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Judge) and value.__module__ == info.name and value.Options:
                found[value.name] = value
    return dict(sorted(found.items()))


def get_judge(description: Any, where: str = "judge", *, own: bool = False) -> Judge:
    """Build a judge from `name` or `{name: ..., option: value}`; `own` lets the name be FILE.py:NAME.

    Raises:
        ConfigError: no such judge, an option that it does not have, or own code that makes no judge.
    """
    if isinstance(description, str):
        description = {"name": description}
    if not isinstance(description, Mapping) or "name" not in description:
        raise ConfigError(f"{where}: expected the name of a judge or a mapping with the key 'name'")
    name = str(description["name"])
    options = {str(key): value for key, value in description.items() if key != "name"}
    if own and usercode.is_own(name):
        made: Judge = usercode.made(name, Judge, "lessen.Judge", options)
        made.origin = {"name": name, **options}
        return made
    cls = builtin_judges().get(name)
    if cls is None:
        points = {point.name: point for point in entry_points(group="lessen.judges")}
        if name not in points:
            raise ConfigError(f"{where}: no judge is called {name!r}; {nearest(name, [*builtin_judges(), *points])}")
        cls = points[name].load()
    if cls.Options is None:
        raise ConfigError(f"{where}: {name} cannot be built from a study file: it declares no Options")
    try:
        judge = cls(cls.Options(**options))  # type: ignore[call-arg]
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, name, cls.Options.model_fields)}") from error
    judge.origin = {"name": name, **options}
    return judge
