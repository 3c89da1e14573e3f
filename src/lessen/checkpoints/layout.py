"""The part of a frame's footer that says which files a checkpoint has, which arrays they hold and how those group."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from lessen.checkpoints.blocks import Form
from lessen.checkpoints.byte_map import Array, ByteMap
from lessen.checkpoints.dtypes import SIZES
from lessen.checkpoints.groups import FLOATS, Group, Place, count_pieces, in_optimizer, pieces
from lessen.errors import ArtifactError, DataError

_SKELETON_PIECE = 8 << 20
_LARGEST_FILE = 1 << 43
ROLES = frozenset({"weight", "first", "second", "other"})
_STEP = re.compile(r"(step[-_=]?)\d+")


Key = tuple[str, str, str, tuple[int, ...]]
"""File, name, dtype and shape of an array."""


@dataclass
class Layout:
    """Files, arrays and groups of one step."""

    maps: tuple[ByteMap, ...]
    groups: tuple[Group, ...]

    def array(self, place: Place) -> Array:
        """Return the array at a place."""
        return self.maps[place[0]].arrays[place[1]]

    def shape(self, group: Group) -> tuple[int, ...]:
        """Return the shape shared by the arrays of a group, in words: elements of 16 bytes are two."""
        array = self.array(next(iter(group.members.values())))
        return (*array.shape, 2) if SIZES[array.kind] == 16 else array.shape

    def pieces(self, group: Group) -> list[tuple[int, Form]]:
        """Return (first element, form) of the pieces a group is coded in."""
        kinds = {role: self.array(place).kind for role, place in group.members.items()}
        return [(start, Form(kinds, rows, columns)) for start, rows, columns in pieces(self.shape(group))]

    def title(self, group: Group) -> str:
        """Return the name errors use for a group: its weight, or what it has."""
        place = group.members.get("weight", next(iter(group.members.values())))
        return self.array(place).name

    def signature(self) -> list[tuple[bool, list[tuple[str, Key]]]]:
        """Return what must agree for one step to build on another: the groups, by what their arrays are called."""
        return [
            (group.near, [(role, self.key(place)) for role, place in group.members.items()]) for group in self.groups
        ]

    def key(self, place: Place) -> Key:
        """Return what an array is known by over the steps: file, name, dtype and shape."""
        array = self.array(place)
        return self.slot(self.maps[place[0]]), array.name, array.kind, array.shape

    @cached_property
    def coded(self) -> list[set[int]]:
        """The arrays that are in a group, by file; the others are part of the structure of their file."""
        found: list[set[int]] = [set() for _ in self.maps]
        for group in self.groups:
            for i, j in group.members.values():
                found[i].add(j)
        return found

    def skeleton(self, i: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the bytes of a file outside coded arrays as lists of (offset, length), each list at most 8 MB."""
        return _batches(self.maps[i].gaps(self.coded[i]))

    def slot(self, mapped: ByteMap) -> str:
        """Return the name of a file that is the same at every step."""
        if len(self.maps) == 1:
            return f"*{PurePosixPath(mapped.path).suffix}"
        return _STEP.sub(r"\1*", mapped.path)

    def weights(self) -> dict[tuple[str, str], tuple[str, tuple[int, ...]]]:
        """Return kind and shape, by file and name, of the arrays that an optimiser was found to move."""
        moved = [group for group in self.groups if "weight" in group.members and (group.near or len(group.members) > 1)]
        return _by_name(self.key(group.members["weight"]) for group in moved)

    def has_weights(self) -> bool:
        """Say whether any array was found that an optimiser may move."""
        return any("weight" in group.members for group in self.groups)

    def by_name(self) -> dict[tuple[str, str], tuple[str, tuple[int, ...]]]:
        """Return kind and shape of every array, by file and name."""
        return _by_name(self.key((i, j)) for i, mapped in enumerate(self.maps) for j in range(len(mapped.arrays)))

    def floats(self) -> dict[tuple[str, str], tuple[str, tuple[int, ...]]]:
        """Return those of `by_name` that are floating-point and no optimiser state."""
        return {key: kind for key, kind in self.by_name().items() if kind[0] in FLOATS and not in_optimizer(key[1])}

    def has_optimizer(self) -> bool:
        """Say whether there is any state of an optimiser."""
        return any(in_optimizer(array.name) for mapped in self.maps for array in mapped.arrays if array.shape)

    def as_json(self) -> dict[str, Any]:
        """Return the layout as JSON values."""
        return {
            "images": [
                [mapped.path, mapped.size, mapped.container, [_array_json(array) for array in mapped.arrays]]
                for mapped in self.maps
            ],
            "groups": [
                [group.near, {role: list(place) for role, place in group.members.items()}] for group in self.groups
            ],
        }


def _by_name(keys: Iterable[Key]) -> dict[tuple[str, str], tuple[str, tuple[int, ...]]]:
    return {(slot, name): (kind, shape) for slot, name, kind, shape in keys}


def _array_json(array: Array) -> list[Any]:
    return [array.name, array.kind, list(array.shape), array.offset]


def read_layout(footer: dict[str, Any], where: str) -> Layout:
    """Rebuild the layout from a footer, checking that nothing in it leads outside. Raises ArtifactError."""
    try:
        maps = tuple(_byte_map(*entry) for entry in footer["images"])
        groups = tuple(
            Group({role: _place(*place) for role, place in members.items()}, near is True)
            for near, members in footer["groups"]
        )
        for group in groups:
            shapes = {maps[i].arrays[j].shape for i, j in group.members.values()}
            if len(shapes) != 1 or not set(group.members) <= ROLES:
                raise ValueError("a group of different shapes or of an unknown role")
        layout = Layout(maps, groups)
        fits = _tables_fit(footer, layout)
    except Exception as error:  # a footer that someone made up may hold anything
        raise ArtifactError(f"{where} has a malformed footer: {error!r}") from error
    if not fits:
        raise ArtifactError(f"{where} has a malformed footer: its tables do not fit its arrays")
    return layout


def _tables_fit(footer: dict[str, Any], layout: Layout) -> bool:
    """Say whether every piece, array and file has its entry, each of the right number of integers."""

    def whole_numbers(value: Any, length: int) -> bool:
        return isinstance(value, list) and len(value) == length and all(type(x) is int and x >= 0 for x in value)

    def rows(value: Any, lengths: list[int], width: int) -> bool:
        return (
            isinstance(value, list)
            and [len(row) if isinstance(row, list) else -1 for row in value] == lengths
            and all(whole_numbers(place, width) for row in value for place in row)
        )

    arrays = [len(mapped.arrays) for mapped in layout.maps]
    sums, digests, origins = footer.get("sums"), footer.get("sha256"), footer.get("origins")
    return (
        rows(footer.get("pieces"), [count_pieces(layout.shape(group)) for group in layout.groups], 4)
        and rows(footer.get("skeletons"), [sum(1 for _ in layout.skeleton(i)) for i in range(len(layout.maps))], 3)
        and isinstance(sums, list)
        and len(sums) == len(arrays)
        and all(whole_numbers(row, length) for row, length in zip(sums, arrays, strict=True))
        and isinstance(digests, list)
        and len(digests) == len(arrays)
        and footer.get("mode") in ("exact", "near")
        and (origins is None or (isinstance(origins, list) and [len(row) for row in origins] == arrays))
    )


def _place(i: Any, j: Any) -> Place:
    if type(i) is not int or type(j) is not int or min(i, j) < 0:
        raise ValueError("a place that is no pair of numbers")
    return i, j


def _byte_map(path: str, size: int, container: str, arrays: list[list[Any]]) -> ByteMap:
    pure = PurePosixPath(path)
    if type(size) is not int or not 0 <= size <= _LARGEST_FILE or not isinstance(container, str):
        raise ValueError(f"a file of {size} bytes in {container!r}")
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in path or "\0" in path:
        raise ValueError(f"the file name {path!r} leads outside the checkpoint")
    rebuilt = []
    at = 0
    for name, kind, shape, offset in arrays:
        if not isinstance(name, str) or not all(type(value) is int and value >= 0 for value in (*shape, offset)):
            raise ValueError(f"array {name!r} with shape {shape!r} at {offset!r}")
        nbytes = SIZES[kind] * math.prod(shape)
        if offset < at or nbytes <= 0 or offset + nbytes > size:
            raise ValueError(f"array {name!r} overlaps another or leaves its file")
        rebuilt.append(Array(name, kind, tuple(shape), offset, nbytes))
        at = offset + nbytes
    return ByteMap(path, size, tuple(rebuilt), container=container)


def _batches(gaps: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    room = _SKELETON_PIECE
    for offset, length in gaps:
        while length:
            part = min(length, room)
            batch.append((offset, part))
            offset, length, room = offset + part, length - part, room - part
            if room == 0:
                yield batch
                batch, room = [], _SKELETON_PIECE
    if batch:
        yield batch


def require_same_series(last: Layout, last_step: int, now: Layout, step: int) -> None:
    """Refuse a checkpoint that cannot belong to the series. Raises DataError naming the first difference.

    The weights that an optimiser moves must be those of the step before. Whatever else a checkpoint holds is data, and
    may come, go and change its shape; where no optimiser tells what the weights are, half of the bytes must agree.
    """
    if last.has_optimizer() and not now.has_optimizer():
        raise DataError(
            f"step {step} has no optimiser moments but step {last_step} has: pack full checkpoints, "
            "or put weights alone into an archive of their own"
        )
    weights, after = last.weights(), now.by_name()
    wanted = weights or last.floats()
    differing = [key for key in wanted if after.get(key) != wanted[key]]
    share = sum(_bytes(wanted[key]) for key in differing) / max(1, sum(_bytes(found) for found in wanted.values()))
    if differing and (weights or share > 0.5):
        name = differing[0]
        raise DataError(
            f"step {step} is from another model than step {last_step}: tensor {name[1]!r} of {name[0]} is "
            f"{_say(after.get(name))} instead of {_say(wanted[name])}; give each model its own archive"
        )


def _bytes(found: tuple[str, tuple[int, ...]]) -> int:
    return SIZES[found[0]] * math.prod(found[1])


def _say(found: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if found is None else f"{found[0]} {list(found[1])}"
