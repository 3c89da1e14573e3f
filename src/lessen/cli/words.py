"""Small languages of the command line: METHOD:knob=value and TASK:option=value, read into the YAML forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lessen.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from lessen.task import Task


def parse_call(text: str, where: str) -> tuple[str, dict[str, Any]]:
    """Read `NAME` or `NAME:key=value,key=value`; values are YAML scalars.

    Raises:
        ConfigError: a part that is not key=value, or a key given twice.
    """
    from lessen import files

    name, _, rest = text.partition(":")
    if not name.strip():
        raise ConfigError(f"{where} {text!r}: expected NAME or NAME:key=value,key=value")
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{where} {text!r}: {part!r} is not key=value")
        if key.strip() in values:
            raise ConfigError(f"{where} {text!r}: {key.strip()!r} is given twice")
        values[key.strip()] = files.parse_yaml(value, f"{where} {text!r}")
    return name.strip(), values


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
    from lessen.cli.own import is_own, own_task
    from lessen.tasks import get_task

    return own_task(text) if is_own(text) else get_task(parse_task(text), "--task")


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
