"""Judges beside a study's task: evaluation suites without training, found by walking this package.

A suite is one file with one `Judge` class that declares `Options`; third parties name theirs under the entry point
`lessen.judges`, users as FILE.py:NAME. Every built-in task is a judge too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from lessen import usercode
from lessen.registry import Registry, classes_of
from lessen.task import Judge
from lessen.tasks import builtin_tasks


@lru_cache(maxsize=1)
def builtin_judges() -> dict[str, type[Judge]]:
    """Return the suites of this package and the built-in tasks, by name."""
    suites = {cls.name: cls for cls in classes_of(__name__, __path__, Judge) if cls.Options}  # type: ignore[type-abstract]
    return dict(sorted({**builtin_tasks(), **suites}.items()))


JUDGES: Registry[Judge] = Registry("judge", Judge, builtin_judges, "lessen.judges")  # type: ignore[type-abstract]


def get_judge(description: Any, where: str = "judge", *, own: bool = False) -> Judge:
    """Build a judge from `name` or `{name: ..., option: value}`; `own` lets the name be FILE.py:NAME.

    Raises:
        ConfigError: no such judge, an option that it does not have, or own code that makes no judge.
    """
    name, options = JUDGES.named(description, where)
    if own and usercode.is_own(name):
        return JUDGES.own(name, options)
    cls, chosen = JUDGES.chosen(name, options, where)
    judge = cls(chosen)  # type: ignore[call-arg]
    judge.origin = {"name": name, **options}
    return judge
