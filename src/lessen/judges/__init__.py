"""Judges beside a study's task: evaluation suites without training, found by walking this package.

A suite is one file with one `Judge` class that declares `Options`; third parties name theirs under the entry point
`lessen.judges`, users as FILE.py:NAME. Every built-in task is a judge too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from lessen import usercode
from lessen.errors import ConfigError
from lessen.judges.suite import Suite
from lessen.metrics import check_reads
from lessen.registry import Registry, classes_of
from lessen.task import Judge, Task
from lessen.tasks import builtin_tasks


@lru_cache(maxsize=1)
def builtin_judges() -> dict[str, type[Judge]]:
    """Return the suites of this package and the built-in tasks, by name."""
    suites = {cls.name: cls for cls in classes_of(__name__, __path__, Judge) if cls.Options}  # type: ignore[type-abstract]
    return dict(sorted({**builtin_tasks(), **suites}.items()))


JUDGES: Registry[Judge] = Registry("judge", Judge, builtin_judges, "lessen.judges")  # type: ignore[type-abstract]


def get_judge(description: Any, where: str = "judge", *, own: bool = False, task: Task | None = None) -> Judge:
    """Build a judge from `name` or `{name: ..., option: value}`; `own` lets the name be FILE.py:NAME.

    Args:
        task: whose data a suite uses that names no task itself.

    Raises:
        ConfigError: no such judge, an option that it does not have, or own code that makes no judge.
    """
    name, options = JUDGES.named(description, where)
    if own and usercode.is_own(name):
        made = JUDGES.own(name, options)
        _check(made, f"{where}: {name}")
        if isinstance(made, Suite):
            made.bind(task)
        return made
    options = _with_task(name, options, task)
    cls, chosen = JUDGES.chosen(name, options, where)
    with usercode.guarded(cls, f"{where}: judge {name!r} cannot be made"):
        judge = cls(chosen)  # type: ignore[call-arg]
    _check(judge, f"{where}: {name}")
    if isinstance(judge, Suite):
        judge.bind(task)
    judge.origin = {"name": name, **options}
    return judge


def _check(judge: Judge, what: str) -> None:
    """Refuse a judge without a name, and metrics that are none. Raises ConfigError, TaskError."""
    if not isinstance(getattr(judge, "name", None), str):
        raise ConfigError(f"{what} has no `name`; give its class one, a text")
    metrics = getattr(judge, "metrics", None)
    if metrics != {}:  # a suite may say all in words
        check_reads(metrics, None, what)


def _with_task(name: str, options: dict[str, Any], task: Task | None) -> dict[str, Any]:
    """Return options that name the task by its description, so that another process finds it too."""
    cls = builtin_judges().get(name)
    fields = getattr(getattr(cls, "Options", None), "model_fields", {})
    if task is None or "task" in options or "task" not in fields:
        return options
    if task.origin is None and task.Options is None:
        return options  # a task made in Python itself: the suite is handed the object
    return {**options, "task": dict(task.origin or task.describe())}


def suites() -> dict[str, type[Suite]]:
    """Return the built-in suites of the report card, by name: those of every card first, in their order."""
    found = {name: cls for name, cls in builtin_judges().items() if issubclass(cls, Suite)}
    return dict(sorted(found.items(), key=lambda item: (item[1].always or 1000, item[0])))
