"""Every error a user can meet: one small tree, one line each, with the exit status the command line returns.

A message says what is wrong, where, and what would fix it. Nothing here prints or logs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


MAX_THREADS, MAX_SEED = 1024, 2**31
"""The largest numbers of threads and seeds that are accepted, at every door."""


class LessenError(Exception):
    """Base of all named errors; `exit_status` is what the command line returns for it."""

    exit_status = 2

    def __str__(self) -> str:
        """Return the message on one line, so that logs and terminals show it whole."""
        return " ".join(super().__str__().split())


class InputError(LessenError):
    """Bad input: the user can fix it by changing an argument, a file or a setting."""


class ConfigError(InputError):
    """A study, recipe or command line holds an unknown key, a wrong type or a value out of range."""


class NothingMatchedError(InputError):
    """A method found no module it can act on."""


class NonFiniteError(InputError):
    """NaN or infinity in weights, data or outputs."""


class TaskError(InputError):
    """A task cannot give what was asked of it: labels, a split, two classes, a readable model."""


class DataError(InputError):
    """A data file or data set is absent, truncated, malformed or inconsistent."""


class ArtifactError(InputError):
    """A stored file is damaged, hostile, incomplete or written by a version that cannot be read."""


class OutputError(InputError):
    """The place to write to is unwritable, full, or already holds something else."""


class BudgetError(InputError):
    """A method cannot reach the size it was asked for; the message names the nearest it can reach.

    `nearest` is that share of the bytes, where it is one.
    """

    def __init__(self, message: str, nearest: float | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest


class MissingExtraError(LessenError):
    """A feature needs an optional package that is not installed."""

    exit_status = 3

    def __init__(self, extra: str, package: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}; install it with: pip install 'lessen[{extra}]'")


class EnvironmentFault(LessenError):
    """The machine, not the input, is at fault: no memory, no disk, a missing operator."""

    exit_status = 3


class GateFailed(LessenError):
    """The work is done and a quality or budget gate did not hold."""

    exit_status = 1


class Interrupted(LessenError):
    """Stopped by the user; what was finished is kept and the work can be resumed."""

    exit_status = 4


SHOWN = 60
"""Names that a refusal lists at most."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest allowed name, or the list of allowed names."""
    if name.endswith(".py"):
        return f"for code of your own write {name}:NAME"
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "allowed: " + ", ".join(names[:SHOWN]) + more


def explain(error: ValidationError, owner: str, known: Iterable[str]) -> str:
    """Turn a pydantic error into one sentence: which key, what was given, what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "value"
    if first["type"] == "extra_forbidden":
        return f"{owner} has no key {key!r}; {nearest(key, known)}"
    if first["type"] == "missing":
        return f"{owner} needs the key {key!r}"
    return f"{owner}.{key} = {first['input']!r} is not accepted: {first['msg'].lower()}"
