"""Classes by name: of a package, of third parties and of the user, and what the options of a file make of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from lessen import usercode
from lessen.errors import ConfigError, explain, nearest

Kind = TypeVar("Kind")


def classes_of(package: str, path: Iterable[str], kind: type[Kind]) -> Iterator[type[Kind]]:
    """Yield the subclasses of `kind` that the modules of a package define, `path` its `__path__`; imports them all."""
    for info in pkgutil.walk_packages(path, prefix=f"{package}."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, type) and issubclass(value, kind) and value.__module__ == info.name:
                yield value


@dataclass(frozen=True)
class Registry(Generic[Kind]):
    """What is called `what` in files and messages, and where its classes are: each declares its `Options`."""

    what: str
    kind: type[Kind]
    builtin: Callable[[], Mapping[str, type[Kind]]]
    group: str
    """Entry points of third parties."""

    def named(self, description: Any, where: str) -> tuple[str, dict[str, Any]]:
        """Return name and options of `name` or `{name: ..., option: value}`. Raises ConfigError: it is neither."""
        if isinstance(description, str):
            description = {"name": description}
        if not isinstance(description, Mapping) or "name" not in description:
            raise ConfigError(f"{where}: expected the name of a {self.what} or a mapping with the key 'name'")
        return str(description["name"]), {str(key): value for key, value in description.items() if key != "name"}

    def chosen(self, name: str, options: Mapping[str, Any], where: str) -> tuple[type[Kind], Any]:
        """Return the class of a name and its checked options. Raises ConfigError: no such name, or no such option."""
        cls = self._class(name, where)
        declared = getattr(cls, "Options", None)
        if declared is None:
            raise ConfigError(f"{where}: {name} cannot be built from a study file: it declares no Options")
        try:
            return cls, declared(**options)
        except ValidationError as error:
            raise ConfigError(f"{where}: {explain(error, name, declared.model_fields)}") from error

    def own(self, name: str, options: Mapping[str, Any]) -> Kind:
        """Return what the user's code at FILE.py:NAME makes, with where it was named as its `origin`.

        Raises:
            ConfigError: it cannot be imported or made, or is something else.
        """
        made = usercode.made(name, self.kind, f"lessen.{self.kind.__name__}", options)
        made.origin = {"name": name, **options}
        found: Kind = made
        return found

    def _class(self, name: str, where: str) -> type[Kind]:
        known = self.builtin()
        if name in known:
            return known[name]
        points = {point.name: point for point in entry_points(group=self.group)}
        if name not in points:
            raise ConfigError(f"{where}: no {self.what} is called {name!r}; {nearest(name, [*known, *points])}")
        with usercode.boundary(f"{where}: {self.what} {name!r} of {points[name].value} cannot be imported"):
            found: type[Kind] = points[name].load()
        if not (isinstance(found, type) and issubclass(found, self.kind)):
            raise ConfigError(f"{where}: {points[name].value} is no class of lessen.{self.kind.__name__}")
        return found
