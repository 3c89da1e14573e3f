"""Base of methods that replace modules: which ones, by path, and why others are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from pydantic import Field, field_validator
from torch import nn

from lessen.method import Context, Method
from lessen.methods.sites import Scope, Site, find, require

Part = TypeVar("Part", bound=nn.Module)


class ModuleMethod(Method):
    """A method that replaces modules of certain types, everywhere or where `only` and `skip` say."""

    later_knobs: ClassVar[frozenset[str]] = frozenset({"only", "skip"})
    only: tuple[str, ...] | None = Field(
        None, description="globs over module paths: act on these and what lies below them"
    )
    skip: tuple[str, ...] | None = Field(
        None, description="globs over module paths: leave these and what lies below them"
    )

    @field_validator("only", "skip", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("only", "skip")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or not all(value)):
            raise ValueError("give at least one pattern, such as 'encoder.*'")
        return value

    @property
    def scope(self) -> Scope:
        """The places where this step may act."""
        return Scope(self.card.name, self.only or (), self.skip or ())

    def candidates(
        self,
        model: nn.Module,
        kinds: tuple[type[nn.Module], ...],
        context: Context,
        reject: Callable[[Any], str | None] | None = None,
        outside: tuple[type[nn.Module], ...] = (),
    ) -> list[Site]:
        """Return the modules of `kinds` that can be replaced; see `sites.find`. Raises ConfigError, see `Scope`."""
        return find(model, kinds, context, reject, outside, self.scope)

    def parts(self, model: nn.Module, kind: type[Part]) -> list[Part]:
        """Return the modules of a class without a `weight` of its own (codecs, indexes) where this step may act.

        Raises:
            ConfigError: a pattern of `only` or `skip` matches no module of the model.
        """
        paths = dict(model.named_modules())
        self.scope.check(path for path in paths if path)
        return [part for path, part in paths.items() if isinstance(part, kind) and not self.scope.reason([path])]

    def eligible(
        self,
        model: nn.Module,
        kinds: tuple[type[nn.Module], ...],
        context: Context,
        reject: Callable[[Any], str | None] | None = None,
        outside: tuple[type[nn.Module], ...] = (),
    ) -> list[Site]:
        """Return the modules of `kinds` that can be replaced, at least one.

        Raises:
            NothingMatchedError: there is none; says why each candidate was left alone.
            ConfigError: a pattern of `only` or `skip` matches no module of the model.
        """
        return require(self.candidates(model, kinds, context, reject, outside), self, model, context)
