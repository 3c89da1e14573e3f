"""A promise that nothing is downloaded while a block runs: what an artifact names is opened without the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lessen.errors import DataError

_PROMISED: ContextVar[bool] = ContextVar("lessen_without_downloads", default=False)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Let every download of the block fail with a DataError that says how to get the data first."""
    before = _PROMISED.set(True)
    try:
        yield
    finally:
        _PROMISED.reset(before)


def require_network(name: str, by_hand: str) -> None:
    """Refuse to go on to a download inside `without_downloads`. Raises DataError."""
    if _PROMISED.get():
        raise DataError(f"the data set {name} is not on this machine and is not downloaded here; {by_hand}")
