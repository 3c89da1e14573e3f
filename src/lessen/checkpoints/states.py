"""Writing and loading the state of a training: what can be written can be loaded, or is refused by name at once."""

from __future__ import annotations

import io
import operator
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from lessen import files
from lessen.checkpoints.harmless import loadable
from lessen.errors import ArtifactError, ConfigError, DataError


def whole_number(name: str, value: Any, least: int, why: str) -> int:
    """Return a whole number (NumPy's too) as an int. Raises ConfigError: it is none, or is below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r} is not accepted: {why}, so a whole number of at least {least}")
    return number


def load_state(file: Path | BinaryIO, mapped: bool = False) -> Any:
    """Load a torch file with weights only, memory-mapped or into memory. NumPy values and plain data are accepted.

    Raises:
        ArtifactError: damaged, or opening it would run code, which the message names.
    """
    try:
        with torch.serialization.safe_globals(loadable()):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise ArtifactError(f"{file} is damaged or no torch checkpoint") from error
        raise ArtifactError(
            f"{file} is refused: to open it would run code of the file (it asks for {wanted.group(1)}); "
            "save tensors, numbers, strings, lists and dicts only"
        ) from error
    except Exception as error:  # torch's reader has no error class of its own
        raise ArtifactError(f"{file} is damaged or no torch checkpoint: {str(error)[:200]}") from error


class _Through(io.RawIOBase):
    """Passes what torch writes to the one file layer, and keeps the error that torch would hide behind its own."""

    def __init__(self, handle: BinaryIO) -> None:
        """Write to `handle`."""
        self.handle = handle
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            files.FILES.write(self.handle, data)
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        self.handle.flush()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state under `path`, which appears only once it has been loaded again.

    Raises:
        DataError: an entry that a resume could not read, by name; nothing is written.
        OutputError: the disk is full or unwritable; nothing is left behind.
    """
    with files.atomic_stream(path) as handle:
        through = _Through(handle)
        try:
            torch.save(dict(state), cast(BinaryIO, through))
            handle.flush()
            load_state(Path(handle.name), mapped=True)
        except Exception as error:  # whatever an object's own pickling raises
            if through.error is not None:
                raise through.error from None
            name, reason = _culprit(state) or ("the state", f"{type(error).__name__}: {error}")
            raise DataError(
                f"{name} cannot be saved so that a resume could read it ({reason}); save tensors, numbers, strings, "
                "lists and dicts, such as the state_dict() of an object"
            ) from error


def _culprit(state: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the name of the first entry that does not come back on its own, and why."""
    for name, value in _leaves(state, ""):
        memory = io.BytesIO()
        try:
            torch.save(value, memory)
            memory.seek(0)
            load_state(memory)
        except Exception as error:
            kind = type(value)
            return f"state entry {name!r}", f"{kind.__module__}.{kind.__qualname__}: {str(error)[:200]}"
    return None


def _leaves(node: Any, name: str, above: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    if id(node) in above:  # a list may hold itself
        return
    above |= {id(node)}
    if type(node) in (list, tuple):
        for key, value in enumerate(node):
            yield from _leaves(value, f"{name}/{key}", above)
    elif type(node) is dict or (name == "" and isinstance(node, Mapping)):
        for key, value in node.items():
            yield from _leaves(value, f"{name}/{key}" if name else str(key), above)
    else:
        yield name, node
