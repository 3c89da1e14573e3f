"""Folders of torch's Distributed Checkpoint: which tensor lies where in the file of each rank.

.metadata        a pickle: for every tensor (or shard of one) its file, offset and length; read as data
__0_0.distcp     the items of one rank one after another, each a torch file of its own
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessen.checkpoints.harmless import strangers
from lessen.checkpoints.pickles import Built, entries, read_pickle
from lessen.checkpoints.torch_files import Found, TorchFile
from lessen.errors import ArtifactError

SUFFIX = ".distcp"
INDEX = ".metadata"
_STATE = re.compile(r"(\w+)\.state\.(.+)\.(\w+)")


@dataclass(frozen=True)
class _Item:
    name: str
    offset: int
    length: int


def read_distributed(file: Path, allow: Collection[str] = ()) -> list[Found]:
    """Return the arrays of the file of one rank by offset.

    Raises:
        ArtifactError: a damaged file or index, or one that would run code.
    """
    found: list[Found] = []
    for item in _items(file, allow):
        for _, kind, shape, offset, nbytes in TorchFile(file, allow, (item.offset, item.length)).arrays():
            found.append((item.name, kind, shape, offset, nbytes))
    return sorted(found, key=lambda array: array[3])


def windows(file: Path) -> list[tuple[int, int]]:
    """Return (offset, length) of the torch files inside the file of one rank. Raises ArtifactError."""
    return [(item.offset, item.length) for item in _items(file, ())]


def _items(file: Path, allow: Collection[str]) -> list[_Item]:
    index = file.parent / INDEX
    if not index.is_file():
        raise ArtifactError(f"{file} lies without its {INDEX}; copy the whole folder")
    tree, names = read_pickle(index.read_bytes(), str(index))
    if unknown := strangers(names, allow):
        raise ArtifactError(f"{index} is refused: to open it would run code of the file (it asks for {unknown[0]})")
    size = file.stat().st_size
    items = [item for key, item in _storage(tree) if item is not None and key == file.name]
    if any(item.offset < 0 or item.length < 0 or item.length > size - item.offset for item in items):
        raise ArtifactError(f"{index} names bytes that {file} does not have: the folder is damaged or incomplete")
    return items


def _storage(tree: Any) -> Iterator[tuple[str, _Item | None]]:
    """Yield (file, item) of the index; several shards of one tensor are told apart by where they begin."""
    for key, value in entries(dict(entries(tree)).get("storage_data")):
        what, where = dict(entries(key)), dict(entries(value))
        name, offset, length = what.get("fqn"), where.get("offset"), where.get("length")
        if not isinstance(name, str) or type(offset) is not int or type(length) is not int:
            continue
        begin = what.get("offset")
        shard = begin.arguments[0] if isinstance(begin, Built) and begin.arguments else ()
        yield str(where.get("relative_path")), _Item(_named(name, shard), offset, length)


def _named(name: str, shard: Any) -> str:
    """Return optimizer/state/NAME/exp_avg for optimizer.state.NAME.exp_avg, and model/NAME for model.NAME."""
    part = f"[{','.join(map(str, shard))}]" if isinstance(shard, tuple) and any(shard) else ""
    if state := _STATE.fullmatch(name):
        return f"{state[1]}/state/{state[2]}{part}/{state[3]}"
    head, dot, rest = name.partition(".")
    return f"{head}/{rest}{part}" if dot else f"{name}{part}"
