"""The one place where what a library raises, or prints on its own, becomes one line of ours."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import IO

from lessen.errors import DataError, LessenError

_OURS = (LessenError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)
_STDERR = 2
_PANIC = re.compile(
    rb"\n?thread '[^\n]*panicked at .*?"
    rb"(?:note: (?:run with|Some details are)[^\n]*\n|(?=\nthread '[^\n]*panicked at )|\Z)",
    re.DOTALL,
)
_holding = Lock()


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Run a library on bytes that nobody vouches for; whatever it raises becomes a DataError that starts with `what`.

    No list of exception types could be complete: polars alone raises its own errors, ValueError, and, for a panic in
    Rust, something that is no Exception at all.

    Raises:
        DataError: the library failed; the reason is the first line of what it said.
    """
    try:
        with unprinted():
            yield
    except _OURS:
        raise
    except BaseException as error:
        raise DataError(f"{what}: {reason(error)}") from error


@contextmanager
def unprinted() -> Iterator[None]:
    """Run a library whose panics print to the process's stderr by themselves, and keep those from the user.

    A panic in Rust prints place and stack from a thread of the library's own, before Python sees the exception; no
    hook of Python's is asked. So file descriptor 2 points to a file meanwhile, and what is in it at the end goes where
    it was meant to go, without the panics. Keep the block short: the words of other threads wait for its end. Where
    one thread holds the descriptor already, or there is none, the block runs as it is.
    """
    if not _holding.acquire(blocking=False):
        yield
        return
    try:
        with tempfile.TemporaryFile() as held:
            before = _redirected(held)
            try:
                yield
            finally:
                if before is not None:
                    _restored(before, held)
    finally:
        _holding.release()


def _redirected(held: IO[bytes]) -> int | None:
    """Point the process's stderr to a file; return a descriptor of where it pointed, or None if it is closed."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.flush()
    try:
        before = os.dup(_STDERR)
    except OSError:
        return None
    os.dup2(held.fileno(), _STDERR)
    return before


def _restored(before: int, held: IO[bytes]) -> None:
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.flush()
    os.dup2(before, _STDERR)
    os.close(before)
    held.seek(0)
    said = _PANIC.sub(b"", held.read())
    with suppress(OSError):
        while said:
            said = said[os.write(_STDERR, said) :]


def reason(error: BaseException) -> str:
    """Return the first line of what an exception says, or its type if it says nothing.

    Of a panic in Rust only the innermost quoted sentence means something.
    """
    said = str(error).strip().splitlines()
    if said and type(error).__name__ == "PanicException":
        inner = re.search(r'"(.*)"', said[0].replace('\\"', "'"))
        said = [f"its bytes are damaged; copy or write it again (polars: {inner[1] if inner else said[0]})"]
    return said[0][:300] if said else type(error).__name__
