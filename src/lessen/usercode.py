"""The user's own code by place: `my_model.py:MyTask` or `package.module:MyNet`, imported by that name.

Only what a user typed, or wrote into a study file that they run, is imported so; never a name in an artifact.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lessen.errors import ConfigError, InputError, LessenError, nearest

PLACE = re.compile(r"(?P<module>[^:=,]+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")


def is_own(text: str | None) -> bool:
    """Tell whether `text` names something in Python code: FILE.py:NAME or MODULE:NAME, no options."""
    return text is not None and PLACE.fullmatch(text) is not None


def named(text: str) -> Any:
    """Return what stands at FILE.py:NAME or MODULE:NAME. Raises ConfigError: it cannot be imported."""
    found = PLACE.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} is not FILE.py:NAME or MODULE:NAME")
    module = _module(found["module"])
    if not hasattr(module, found["name"]):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(f"{found['module']} has no {found['name']!r}; {nearest(found['name'], names)}")
    return getattr(module, found["name"])


@contextmanager
def boundary(what: str) -> Iterator[None]:
    """Turn whatever the user's own code raises in the block into one line that starts with `what`.

    Used where it is called for the first time, before any module of ours stands in its model.

    Raises:
        InputError: the class and the words of the exception. Errors of ours and a lack of memory pass.
    """
    try:
        yield
    except (LessenError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a device
            raise
        words = " ".join(str(error).split())[:300]
        raise InputError(f"{what}: {type(error).__name__}: {words}") from error


def guarded(code: Any, what: str) -> AbstractContextManager[None]:
    """Return a `boundary` around what is somebody else's code, an object or its class; faults of ours stay faults."""
    kind = code if isinstance(code, type) else type(code)
    return nullcontext() if kind.__module__.partition(".")[0] == __package__ else boundary(what)


def call(text: str, value: Any, **options: Any) -> Any:
    """Return `value(**options)`, what the place `text` makes. Raises ConfigError when that fails."""
    try:
        return value(**options)
    except LessenError:
        raise
    except Exception as error:
        raise ConfigError(f"{text}() failed: {type(error).__name__}: {error}") from error


def made(text: str, kind: type[Any], called: str, options: Mapping[str, Any]) -> Any:
    """Return the object of class `kind` at the place `text`, or that what stands there makes with `options`.

    Raises:
        ConfigError: it cannot be imported or made, or is no such object.
    """
    value = named(text)
    if isinstance(value, kind):
        if options:
            raise ConfigError(f"{text} is made already and takes no options; name a class or a function")
        return value
    found = call(text, value, **options) if callable(value) else value
    if not isinstance(found, kind):
        raise ConfigError(f"{text} is a {type(found).__name__}, not a {called}")
    return found


def _module(name: str) -> Any:
    path = Path(name)
    folder = str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd())
    if path.suffix == ".py" and not path.is_file():
        raise ConfigError(f"no file {name}")
    if folder not in sys.path:
        sys.path.insert(0, folder)  # its neighbours are imported as when it is run
    try:
        return _from_file(path) if path.suffix == ".py" else importlib.import_module(name)
    except LessenError:
        raise
    except Exception as error:
        raise ConfigError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _from_file(path: Path) -> Any:
    """Import a file once for as long as it stays as it is, so that its classes are the same wherever they are named."""
    stamp = (str(path.resolve()), path.stat().st_mtime_ns)
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__lessen_stamp__", None) == stamp:
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    if known is None or hasattr(known, "__lessen_stamp__"):  # never in the place of a module that is not the user's
        sys.modules[path.stem] = module
    vars(module)["__lessen_stamp__"] = stamp
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise
    return module
