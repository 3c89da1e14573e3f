"""The one way files are written and read: atomic writes, digests, bounded and checked parsing.

Every write goes to a sibling temporary name, is flushed to disk and renamed, so that a kill at any moment leaves
the old or the new content, never a mixture. Every operation goes through `FILES`, which tests replace to fail at
the n-th call.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from lessen.errors import ArtifactError, ConfigError, LessenError, OutputError

TEMPORARY = ".lessen-tmp-"
_REFUSED = re.compile(r"\(os error (\d+)\)")
MAX_TEXT_BYTES = 1 << 20
MAX_DEPTH = 32


class FileLayer:
    """The few operations that writing needs; a test double overrides them to fail at the n-th call."""

    def open(self, path: Path) -> BinaryIO:
        """Open a new file for writing."""
        return path.open("xb")

    def write(self, handle: BinaryIO, data: bytes) -> None:
        """Write all of `data`."""
        handle.write(data)

    def sync(self, handle: BinaryIO) -> None:
        """Flush to the device."""
        handle.flush()
        os.fsync(handle.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target` by `source` in one step."""
        source.replace(target)

    def sync_folder(self, folder: Path) -> None:
        """Make a rename inside `folder` durable."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


FILES = FileLayer()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}")


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one OutputError that names `what`.

    Those met by libraries in Rust (safetensors, tokenizers) too, which are exceptions of their own with the number in
    the text.
    """
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, (OSError, LessenError)) else _REFUSED.search(str(error))
        if not isinstance(error, OSError) and found is None:
            raise
        reason = os.strerror(int(found[1])) if found else getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write {what}: {reason}; free space or choose another place") from error


@contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that becomes `path` when the block ends well, and vanishes otherwise.

    Readers see the old or the new content only. Large content is written with `FILES.write`.

    Raises:
        OutputError: the place cannot be written; nothing is left behind.
    """
    temporary = _temporary(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FILES.open(temporary) as handle:
                claim(handle.fileno())
                yield handle
                FILES.sync(handle)
            FILES.rename(temporary, path)
            FILES.sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that readers see the old or the new content only.

    Raises:
        OutputError: the place cannot be written; nothing is left behind.
    """
    with atomic_stream(path) as handle:
        FILES.write(handle, data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `path` when the block ends well, and vanishes otherwise.

    Raises:
        OutputError: `path` exists and is not an empty folder, or the place cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path} already exists and is not empty; remove it or choose another --out")
    temporary = _temporary(path)
    with writing(path):
        temporary.mkdir(parents=True)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            claim(descriptor)
            yield temporary
            if path.exists():
                path.rmdir()
            FILES.rename(temporary, path)
            FILES.sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)


def claim(descriptor: int) -> bool:
    """Lock an open temporary for as long as this process lives; False when another process holds it.

    The number of a process says nothing to another process namespace (a container on the same disk); a lock does.
    """
    with suppress(ImportError):  # no such locks on Windows: there the number alone decides
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


def _abandoned(temporary: Path) -> bool:
    owner = temporary.name[len(TEMPORARY) :].split("-")[0]
    if not owner.isdigit() or _alive(int(owner)):
        return False
    try:
        descriptor = os.open(temporary, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # gone, or not ours to judge
        return False
    try:
        return claim(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Remove temporaries that a killed process left in `folder`; those of living processes stay."""
    if not folder.is_dir():
        return
    for stale in folder.glob(f"{TEMPORARY}*"):
        if _abandoned(stale):
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def digest(raw: bytes) -> str:
    """Return the SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that is no link, pipe, device or folder; never waits for one.

    Raises:
        ArtifactError: absent, unreadable, or not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; copy the whole folder again") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}; it must be a regular file, not a link") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path} is not a regular file; copy the whole folder again")
    return os.fdopen(descriptor, "rb")


def read_checked(path: Path, expected: str | None = None, limit: int | None = None) -> bytes:
    """Read a whole regular file that is no link, no larger than `limit`, and whose SHA-256 is `expected`.

    Raises:
        ArtifactError: absent, not a regular file, too large, unreadable, or different from what was written.
    """
    with open_regular(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if limit is not None and size > limit:
            raise ArtifactError(f"{path} has {size} bytes, more than the {limit} this file may have")
        raw = handle.read()
    if expected is not None and digest(raw) != expected:
        raise ArtifactError(_changed(path))
    return raw


def check_file(path: Path, expected: str, size: int) -> None:
    """Read a regular file in pieces and refuse it unless it has `size` bytes and the SHA-256 `expected`.

    Raises:
        ArtifactError: absent, not a regular file, of another size, or different from what was written.
    """
    found = hashlib.sha256()
    with open_regular(path) as handle:
        held = os.fstat(handle.fileno()).st_size
        if held != size:
            raise ArtifactError(f"{path} has {held} bytes, {size} were recorded when it was written")
        while piece := handle.read(1 << 20):
            found.update(piece)
    if found.hexdigest() != expected:
        raise ArtifactError(_changed(path))


def _changed(path: Path) -> str:
    return f"{path} was changed or damaged: its SHA-256 differs from the one recorded when written"


# -- bounded text formats --------------------------------------------------------------------------------------
def parse_json(raw: bytes | str, where: str) -> Any:
    """Parse JSON that is small, shallow, without duplicate keys and without NaN. Raises ArtifactError."""
    if len(raw) > 64 * MAX_TEXT_BYTES:
        raise ArtifactError(f"{where} is larger than {64 * MAX_TEXT_BYTES} bytes")
    try:
        value = json.loads(raw, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON: {error}") from error
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"duplicate key {key!r}")
        seen[key] = value
    return seen


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def canonical(value: Any) -> bytes:
    """Return the one spelling of a JSON value whose digest is taken: keys sorted, no spaces."""
    return json.dumps(finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def dump_json(value: Any) -> str:
    """Return `value` as stable, indented JSON; NaN and infinity become null."""
    return json.dumps(finite(value), indent=2, sort_keys=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Return `value` with NaN and infinity replaced by None, containers copied."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


STARRED = "write the value out, or put a glob that begins with a star between quotes"


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases or duplicate keys, and of bounded depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ConfigError(f"line {mark.line + 1}: YAML aliases are not accepted; {STARRED}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConfigError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: duplicate key {key!r}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML by the safe loader, without aliases, duplicate keys, deep nesting or more than 1 MB.

    Raises:
        ConfigError: with file and line.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ConfigError(f"{where}: larger than {MAX_TEXT_BYTES} bytes")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # such as a number of 6,000 digits
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        if getattr(error, "context", None) == "while scanning an alias":
            problem = f"a value begins with a star; {STARRED}"
        raise ConfigError(f"{where}:{line} not valid YAML: {problem}") from error


def _unwaiting(path: Path) -> int:
    """Open for reading without waiting for somebody to write: a pipe that has a writer is read as ever."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(kind):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISFIFO(kind):
        os.set_blocking(descriptor, True)  # without a writer it ends at once: the open did not wait for one
    return descriptor


def read_text(path: Path, what: str) -> str:
    """Read a small UTF-8 text file that the user named. Raises ConfigError."""
    try:
        with os.fdopen(_unwaiting(path), encoding="utf-8") as handle:
            text = handle.read(MAX_TEXT_BYTES + 1)
        if len(text) > MAX_TEXT_BYTES:
            raise ConfigError(f"{what} {path} is larger than {MAX_TEXT_BYTES} bytes")
        return text
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {what} {path}: {error}") from error


def dump_yaml(value: Any) -> str:
    """Return `value` as block-style YAML in the given key order."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110))
