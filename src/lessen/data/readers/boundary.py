"""The one place where what a library raises becomes one line of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lessen.errors import DataError, LessenError

_OURS = (LessenError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Run a library on bytes that nobody vouches for; whatever it raises becomes a DataError that starts with `what`.

    No list of exception types could be complete: polars alone raises its own errors, ValueError, and, for a panic in
    Rust, something that is no Exception at all.

    Raises:
        DataError: the library failed; the reason is the first line of what it said.
    """
    try:
        yield
    except _OURS:
        raise
    except BaseException as error:
        raise DataError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the first line of what an exception says, or its type if it says nothing."""
    said = str(error).strip().splitlines()
    return said[0][:300] if said else type(error).__name__
