"""lessen makes trained models cost less, and proves what that cost in quality.

result = lessen.compress(model, task, {"emb-rowwise-quant": {"bits": 4}})
print(result)                                   # the whole trade in one table
result.save("out/small")
small = lessen.load("out/small", model=MyNet())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lessen.version import __version__ as __version__

if TYPE_CHECKING:
    from lessen.artifact.folder import load, save, verify
    from lessen.errors import LessenError
    from lessen.measure.profile import profile
    from lessen.method import Card, Context, Method
    from lessen.methods.modules import ModuleMethod
    from lessen.metrics import ACCURACY, AUC, LOGLOSS, MSE, Metric
    from lessen.recipe import Recipe
    from lessen.task import Judge, Task
    from lessen.tasks import get_task
    from lessen.trade import Trade, compare, compress
    from lessen.train.settings import FitSettings

_HOMES = {
    "lessen.artifact.folder": ("load", "save", "verify"),
    "lessen.trade": ("Trade", "compare", "compress"),
    "lessen.measure.profile": ("profile",),
    "lessen.errors": ("LessenError",),
    "lessen.method": ("Card", "Context", "Method"),
    "lessen.methods.modules": ("ModuleMethod",),
    "lessen.metrics": ("ACCURACY", "AUC", "LOGLOSS", "MSE", "Metric"),
    "lessen.recipe": ("Recipe",),
    "lessen.task": ("Judge", "Task"),
    "lessen.tasks": ("get_task",),
    "lessen.train.settings": ("FitSettings",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - grouped as a reader meets them
    "Task", "Judge", "Method", "ModuleMethod", "Card", "Context", "Recipe", "FitSettings", "Metric", "AUC", "LOGLOSS",
    "ACCURACY", "MSE", "get_task", "compress", "compare", "profile", "Trade", "save", "load", "verify", "LessenError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use, so that `import lessen` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'lessen' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), *__all__])
