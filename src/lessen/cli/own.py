"""The user's own code on the command line: `my_model.py:MyTask` or `package.module:MyNet`, imported by that name."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from torch import nn

from lessen.errors import ConfigError, LessenError, nearest
from lessen.task import Task

PLACE = re.compile(r"(?P<module>[^:=,]+):(?P<name>[A-Za-z_]\w*)")


def is_own(text: str | None) -> bool:
    """Tell whether `text` names something in Python code: FILE.py:NAME or MODULE:NAME, no options."""
    return text is not None and PLACE.fullmatch(text) is not None


def own_task(text: str) -> Task:
    """Return the task at FILE.py:NAME or MODULE:NAME, a `Task` or something that makes one without arguments.

    Raises:
        ConfigError: it cannot be imported or made, or is no task.
    """
    made = _made(text)
    if not isinstance(made, Task):
        raise ConfigError(f"{text} is a {type(made).__name__}, not a lessen.Task")
    return made


def own_model(text: str) -> nn.Module:
    """Return the model at FILE.py:NAME or MODULE:NAME in eval mode; a class or function is called without arguments.

    Raises:
        ConfigError: it cannot be imported or made, or is no module.
    """
    made = _made(text)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{text} is a {type(made).__name__}, not a torch.nn.Module")
    return made.eval()


def _made(text: str) -> Any:
    found = PLACE.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} is not FILE.py:NAME or MODULE:NAME")
    module = _module(found["module"])
    if not hasattr(module, found["name"]):
        names = [name for name, value in vars(module).items() if isinstance(value, (type, Task, nn.Module))]
        raise ConfigError(f"{found['module']} has no {found['name']!r}; {nearest(found['name'], names)}")
    value = getattr(module, found["name"])
    if not callable(value) or isinstance(value, nn.Module):
        return value
    try:
        return value()
    except LessenError:
        raise
    except Exception as error:
        raise ConfigError(f"{text}() failed: {type(error).__name__}: {error}") from error


def _module(name: str) -> Any:
    path = Path(name)
    folder = str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd())
    if path.suffix == ".py" and not path.is_file():
        raise ConfigError(f"no file {name}")
    if folder not in sys.path:
        sys.path.insert(0, folder)  # its neighbours are imported as when it is run
    try:
        if path.suffix != ".py":
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
    except LessenError:
        raise
    except Exception as error:
        raise ConfigError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    return module
