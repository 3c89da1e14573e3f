"""The index of an archive: which steps it holds, in which files, and one writer at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lessen import files
from lessen.errors import ArtifactError, OutputError

NAME = "index.json"
FORMAT = 2
"""What is written. Format 1 (no list of pruned steps, every array coded on its own) is read as well."""

_FRAME = re.compile(r"step-\d{9,17}\.frame")
_LIMIT = 64 << 20


def is_frame(name: str) -> bool:
    """Say whether a file name is one that a frame has."""
    return _FRAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Entry:
    """One step of an archive."""

    step: int
    file: str
    digest: str
    """SHA-256 of the footer of the frame."""
    key: bool
    """Built on nothing; other steps build on the one before them."""
    raw_bytes: int
    """Size of the checkpoint that was packed."""
    bytes: int
    """Size of the frame."""
    source: str
    """Where the checkpoint was when it was packed."""
    listed: bool = True
    """False for a pruned step that later ones still build on."""


@dataclass
class Index:
    """All steps in order, and the settings the archive was made with."""

    settings: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)
    pruned: list[int] | None = field(default_factory=list)
    """Steps that were removed on purpose; None in archives of format 1, which did not keep them."""

    def find(self, step: int) -> int:
        """Return the position of a listed step. Raises ArtifactError naming the steps there are."""
        for position, entry in enumerate(self.entries):
            if entry.step == step and entry.listed:
                return position
        steps = [entry.step for entry in self.entries if entry.listed]
        shown = [str(number) for number in steps]
        if len(shown) > 12:
            shown[6:-6] = ["..."]
        raise ArtifactError(f"the archive holds no step {step}; it holds {', '.join(shown) or 'none'}")

    def chain(self, position: int) -> list[Entry]:
        """Return the entries to decode for a position: from its key frame up to itself."""
        first = max(k for k in range(position + 1) if self.entries[k].key)
        return self.entries[first : position + 1]


def read_index(folder: Path) -> Index:
    """Read and check the index of an archive. Raises ArtifactError."""
    path = folder / NAME
    if not path.exists():
        raise ArtifactError(f"{folder} is no checkpoint archive: it has no {NAME}")
    document = files.parse_json(files.read_checked(path, limit=_LIMIT), str(path))
    try:
        if document["format"] not in (1, FORMAT):
            raise ArtifactError(f"{path} has format {document['format']!r}; this release reads formats 1 to {FORMAT}")
        body = document["archive"]
        if _digest(body) != document["sha256"]:
            raise ArtifactError(f"{path} was changed or damaged: its SHA-256 differs; restore it from a copy")
        entries = [_entry(**entry) for entry in body["entries"]]
        index = Index(body["settings"], entries, body.get("pruned"))
        steps = [entry.step for entry in entries]
        if steps != sorted(set(steps)) or index.settings["mode"] not in ("exact", "near"):
            raise ValueError("steps out of order, or no mode")
        if index.pruned is not None and not all(type(step) is int for step in index.pruned):
            raise ValueError("pruned steps that are no numbers")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is malformed: {error!r}") from error
    if index.entries and not index.entries[0].key:
        raise ArtifactError(f"{path} is malformed: its first step is no key frame")
    return index


def _entry(**fields: Any) -> Entry:
    """Return an entry all of whose fields have their types, and whose file lies in the archive."""
    entry = Entry(**fields)
    wanted = {"step": int, "file": str, "digest": str, "key": bool, "raw_bytes": int, "bytes": int, "source": str}
    for name, kind in {**wanted, "listed": bool}.items():
        if type(getattr(entry, name)) is not kind:
            raise TypeError(f"{name} = {getattr(entry, name)!r}")
    if min(entry.step, entry.raw_bytes, entry.bytes) < 0 or not is_frame(entry.file):
        raise ValueError(f"file {entry.file!r} of step {entry.step} is no frame or leads outside the archive")
    return entry


def write_index(folder: Path, index: Index) -> None:
    """Replace the index in one step. Raises OutputError."""
    entries = [asdict(entry) for entry in index.entries]
    body = {"settings": index.settings, "entries": entries, "pruned": index.pruned}
    document = {"format": FORMAT, "sha256": _digest(body), "archive": body}
    files.atomic_write(folder / NAME, files.dump_json(document))


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _lock(descriptor: int, folder: Path, until: float) -> None:
    import fcntl

    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() >= until:
                owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise OutputError(
                    f"{folder} is being written by process {owner}; wait for it or use another archive"
                ) from error
        time.sleep(0.1)


@contextmanager
def one_writer(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the archive for writing. The lock vanishes with the process, however that ends.

    Args:
        patience: seconds to wait for another writer to end.

    Raises:
        OutputError: another process writes to it, or the folder cannot be written.
    """
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, folder, time.monotonic() + patience)
        with suppress(OSError):  # the number only serves the message above; a full disk must not stop reading
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
