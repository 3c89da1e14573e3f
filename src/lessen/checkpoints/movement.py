"""Which arrays of a checkpoint moved since the step before: what tells a weight from a buffer and a frozen layer."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

from lessen.checkpoints.byte_map import ByteMap
from lessen.checkpoints.groups import Place
from lessen.checkpoints.layout import Layout

_READ = 1 << 20
_LARGEST_LOOSE = 1 << 16
"""New arrays of more bytes than this in all start a key frame, from which they are coded against their past."""


class Moved:
    """Compares the files of a checkpoint with the last frame of an archive; arrays are read only when asked about.

    An array that the frame keeps exactly has the checksum there that it had in its file. One that it keeps nearly has
    not, but for the first frame of an archive, which says both.
    """

    def __init__(
        self, maps: Sequence[ByteMap], handles: Sequence[BinaryIO], last: Layout, footer: dict[str, Any]
    ) -> None:
        """Take the files of the new step, and the layout and footer of the last one."""
        self._now, self._handles, self._last = Layout(tuple(maps), ()), handles, last
        self._known = {
            last.key((i, j)): (i, j) for i, mapped in enumerate(last.maps) for j in range(len(mapped.arrays))
        }
        self._near = {group.members["weight"] for group in last.groups if group.near and "weight" in group.members}
        inexact = {place for group in last.groups if group.near for place in group.members.values()}
        self._sums: dict[Place, int] = {
            (i, j): value
            for i, row in enumerate(footer["sums"])
            for j, value in enumerate(row)
            if j in last.coded[i] and (i, j) not in inexact
        }
        self._origins: list[list[int]] | None = footer.get("origins")
        self._loose = {
            (last.slot(mapped), array.name)
            for i, mapped in enumerate(last.maps)
            for j, array in enumerate(mapped.arrays)
            if j not in last.coded[i]
        }
        fresh = [
            array.nbytes
            for i, mapped in enumerate(maps)
            for j, array in enumerate(mapped.arrays)
            if not self._is_known((i, j))
        ]
        self._few = sum(fresh) <= _LARGEST_LOOSE

    def trusts(self, place: Place) -> bool:
        """Say whether an array was a weight that moves already."""
        before = self._known.get(self._now.key(place))
        if before is None or before not in self._near:
            return False
        return self._origins is None or self._origins[before[0]][before[1]] != self._sum(place)

    def moved(self, place: Place) -> bool:
        """Say whether an array is known to differ from the step before."""
        before = self._known.get(self._now.key(place))
        if before is None:
            return False
        if before in self._sums:
            return self._sums[before] != self._sum(place)
        return self._origins is not None and self.trusts(place)

    def is_loose(self, place: Place) -> bool:
        """Say whether an array, if it is no weight or moment, is one that comes and goes or changes its shape."""
        slot, name, _, _ = self._now.key(place)
        if (slot, name) in self._loose:
            return True
        return not self._is_known(place) and (self._few or self._has_changed_shape(slot, name))

    def _is_known(self, place: Place) -> bool:
        key = self._now.key(place)
        return key in self._known or key[:2] in self._loose

    def _has_changed_shape(self, slot: str, name: str) -> bool:
        return any(key[:2] == (slot, name) for key in self._known)

    def _sum(self, place: Place) -> int:
        array = self._now.array(place)
        value, at = 0, 0
        while at < array.nbytes:
            data = os.pread(self._handles[place[0]].fileno(), min(_READ, array.nbytes - at), array.offset + at)
            if not data:  # became shorter: packing will say so
                return -1
            value, at = zlib.crc32(data, value), at + len(data)
        return value
