"""Small languages of the command line: METHOD:knob=value and TASK:option=value, read into the YAML forms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.errors import MAX_SEED, MAX_THREADS, ConfigError, OutputError
from lessen.usercode import is_own

if TYPE_CHECKING:
    from lessen.task import Task


_OWN = re.compile(r"([^:=,]+\.py:[A-Za-z_]\w*)(?::(.*))?$", re.DOTALL)
"""FILE.py:NAME, and what follows it."""
_GLOB = re.compile(r"([\[,]\s*)(\*[^\s,\[\]'\"]*)")
"""A glob within a list that begins with a star, which YAML would take for an alias."""
Threads = Annotated[int, typer.Option("--threads", min=1, max=MAX_THREADS, help="torch threads.")]
Device = Annotated[str, typer.Option("--device", help="Where models run: cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything that is drawn.")]


def parse_call(text: str, where: str) -> tuple[str, dict[str, Any]]:
    """Read `NAME` or `NAME:key=value,key=value`; NAME may be FILE.py:NAME, a value any YAML in one line.

    Raises:
        ConfigError: a part that is not key=value, or a key given twice.
    """
    if is_own(text):
        return text, {}
    place = _OWN.match(text)
    name, rest = (place[1], place[2] or "") if place else text.partition(":")[::2]
    if not name.strip():
        raise ConfigError(f"{where} {text!r}: expected NAME or NAME:key=value,key=value")
    values: dict[str, Any] = {}
    for part in _parts(rest):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{where} {text!r}: {part!r} is not key=value")
        if key.strip() in values:
            raise ConfigError(f"{where} {text!r}: {key.strip()!r} is given twice")
        values[key.strip()] = _value(value, f"{where} {text!r}")
    return name.strip(), values


def _value(text: str, where: str) -> Any:
    """Read the value of a key: YAML, in which a glob may begin with a star (`*.mlp.*`) without quotes."""
    from lessen import files

    if text.lstrip().startswith("*"):
        return text.strip()
    return files.parse_yaml(text if "'" in text or '"' in text else _GLOB.sub(r"\1'\2'", text), where)


def _parts(text: str) -> Iterator[str]:
    """Yield what lies between commas that stand in no bracket and in no quotes."""
    depth, quote, start = 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            if text[start:at]:
                yield text[start:at]
            start = at + 1
    if text[start:]:
        yield text[start:]


def parse_step(text: str) -> dict[str, Any]:
    """Return the YAML form of a recipe step. Raises ConfigError."""
    name, knobs = parse_call(text, "--step")
    return {name: knobs}


def parse_task(text: str) -> dict[str, Any]:
    """Return the YAML form of a task. Raises ConfigError."""
    name, options = parse_call(text, "--task")
    return {"name": name, **options}


def task_of(text: str) -> Task:
    """Return the task that `--task` names: built in with its options, or the user's own at FILE.py:NAME.

    Raises:
        ConfigError: no such task, or an option that it does not have.
    """
    from lessen.tasks import get_task

    return get_task(parse_task(text), "--task", own=True)


def new_folder(path: Path) -> Path:
    """Return `path` if a new folder can be made there; found out before long work, not after it.

    Raises:
        OutputError: it exists and is not an empty folder, or its parent cannot be written.
    """
    from lessen import files

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path} already exists and is not empty; remove it or choose another --out")
    with files.atomic_folder(path):
        pass
    path.rmdir()
    return path


def new_file(path: Path, suffix: str | None = None) -> Path:
    """Return `path` if a file can be written there; found out before long work, and nothing of it stays.

    Args:
        suffix: of files of the kind that is written, which may be written over; others are somebody's. None: all may.

    Raises:
        OutputError: it is a folder or a file of another kind, or its own folder cannot be written.
    """
    from lessen import files

    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file to write")
    if suffix is not None and path.exists() and path.suffix != suffix:
        raise OutputError(f"{path} exists and is not called *{suffix}, so it is not written over; choose another name")
    with suppress(_Tried), files.atomic_stream(path):
        raise _Tried
    return path


class _Tried(Exception):
    """A file could be opened; nothing is to be kept of it."""
