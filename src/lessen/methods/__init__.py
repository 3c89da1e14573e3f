"""Every method, found by walking this package and the `lessen.methods` entry points; no list is kept by hand."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points

from lessen import usercode
from lessen.errors import ConfigError, nearest
from lessen.method import Method
from lessen.registry import classes_of


@lru_cache(maxsize=1)
def builtin_methods() -> dict[str, type[Method]]:
    """Return the methods of this package by card name."""
    found: dict[str, type[Method]] = {}
    for cls in classes_of(__name__, __path__, Method):
        if "card" not in vars(cls):
            continue  # an abstract base shared by siblings
        other = found.setdefault(cls.card.name, cls)
        if other is not cls:
            raise ValueError(f"two methods are called {cls.card.name!r}: {other} and {cls}")
    return dict(sorted(found.items()))


def families() -> dict[str, str]:
    """Return the families, one a folder of this package, with what its docstring says of it."""
    found = {}
    for info in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        if info.ispkg and not info.name.rpartition(".")[2].startswith("_"):
            found[info.name.rpartition(".")[2]] = (importlib.import_module(info.name).__doc__ or "").strip()
    return found


def plugin_names() -> dict[str, str]:
    """Return third-party methods (name to package) without importing them."""
    return {point.name: point.value for point in entry_points(group="lessen.methods")}


def get_method(name: str, where: str = "recipe", *, own: bool = False) -> type[Method]:
    """Return a method by its slug; a third party's is imported only when named.

    Args:
        own: let the name be FILE.py:NAME or MODULE:NAME, code of the user that is imported; only for what the user
            wrote, never for what a file of results says.

    Raises:
        ConfigError: no such method.
    """
    known = builtin_methods()
    if name in known:
        return known[name]
    if own and usercode.is_own(name):
        made = _checked(usercode.named(name), f"{where}: {name}")
        made.origin = name
        return made
    for point in entry_points(group="lessen.methods"):
        if point.name == name:
            return _checked(point.load(), f"{where}: the plug-in {point.value}")
    raise ConfigError(f"{where}: no method is called {name!r}; {nearest(name, [*known, *plugin_names()])}")


def _checked(found: object, what: str) -> type[Method]:
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"{what} is not a lessen Method")
    if "card" not in vars(found):
        raise ConfigError(f"{what} has no card; give the class a `card = Card(...)`")
    return found
