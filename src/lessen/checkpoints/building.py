"""Writes the frame of one checkpoint: its pieces, the bytes around them, and the footer."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lessen.checkpoints import blocks, coder
from lessen.checkpoints.distributed import windows
from lessen.checkpoints.frames import FrameWriter
from lessen.checkpoints.groups import Group
from lessen.checkpoints.layout import Layout
from lessen.checkpoints.near import NearSettings
from lessen.checkpoints.reference import Reference
from lessen.checkpoints.torch_files import refresh_sums
from lessen.errors import DataError

_UNMOVED_SHARE = 0.1
"""A table is coded by rows when at least this share of them did not move."""


class FrameBuilder:
    """Codes one checkpoint into a frame, against `reference`, which it leaves at the state unpacking will give."""

    def __init__(
        self,
        layout: Layout,
        handles: Sequence[BinaryIO],
        reference: Reference,
        key: bool,
        near: NearSettings | None,
        first: bool,
    ) -> None:
        """Take a checkpoint's open files; `near` None codes everything exactly.

        The `first` frame of an archive says what its arrays were before coding, so that the second can tell which of
        them move.
        """
        self.layout, self.handles, self.reference, self.key, self.near = layout, handles, reference, key, near
        self.first = first
        self.sums = [[0] * len(mapped.arrays) for mapped in layout.maps]
        self.origins = [[0] * len(mapped.arrays) for mapped in layout.maps]

    def write(
        self, writer: FrameWriter, dictionaries: Mapping[str, bytes], tick: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """Write every block and return the footer.

        Args:
            dictionaries: by slot, the structure of the file in the key frame.
            tick: told (groups done, groups).
        """
        places = []
        for g in range(len(self.layout.groups)):
            places.append(self._write_group(writer, g))
            tick(g + 1, len(self.layout.groups))
        self.reference.has_digests = True
        return {
            "mode": "exact" if self.near is None else "near",
            **self.layout.as_json(),
            "pieces": places,
            "sums": self.sums,
            **({"origins": self.origins} if self.first and self.near is not None else {}),
            "sha256": [_sha256(handle) for handle in self.handles],
            "skeletons": [self._write_skeleton(writer, i, dictionaries) for i in range(len(self.layout.maps))],
        }

    def _write_group(self, writer: FrameWriter, g: int) -> list[list[int]]:
        group = self.layout.groups[g]
        settings = self.near if group.near else None
        table = blocks.is_table(self.layout.shape(group))
        places = []
        for start, form in self.layout.pieces(group):
            now = read_piece(self.layout, group, self.handles, start, form)
            before = None if self.key else self.reference.read(g, start, form)
            moved = None
            if table:
                moved = self._moved(g, start, form, blocks.row_digests(now, form), before)
            flags, blob, rebuilt = blocks.encode_piece(now, before, form, settings, moved)
            places.append([flags, *writer.add(blob)])
            self.reference.write(g, start, rebuilt)
            for role, (i, j) in group.members.items():
                self.sums[i][j] = zlib.crc32(np.ascontiguousarray(rebuilt[role]).data, self.sums[i][j])
                self.origins[i][j] = zlib.crc32(now[role].data, self.origins[i][j])
        return places

    def _moved(
        self, g: int, start: int, form: blocks.Form, fresh: NDArray[np.uint64], before: blocks.Piece | None
    ) -> NDArray[np.bool_] | None:
        """Note the digests of the rows; return which differ from the step before, or None when that would not pay."""
        first = start // form.columns
        known = None if before is None else self.reference.read_digests(g, first, form.rows)
        self.reference.write_digests(g, first, fresh)
        if known is None:
            return None
        moved: NDArray[np.bool_] = fresh != known
        return moved if np.count_nonzero(moved) <= (1 - _UNMOVED_SHARE) * form.rows else None

    def _write_skeleton(self, writer: FrameWriter, i: int, dictionaries: Mapping[str, bytes]) -> list[list[int]]:
        mapped = self.layout.maps[i]
        places = []
        for part, ranges in enumerate(self.layout.skeleton(i)):
            gaps = {offset: bytearray(os.pread(self.handles[i].fileno(), length, offset)) for offset, length in ranges}
            if mapped.container in ("torch", "distributed") and self.near is not None:
                file = Path(self.handles[i].name)
                inner = windows(file) if mapped.container == "distributed" else None
                new = {
                    array.offset: self.sums[i][j] for j, array in enumerate(mapped.arrays) if j in self.layout.coded[i]
                }
                refresh_sums(file, gaps, new, inner)
            dictionary = dictionaries.get(self.layout.slot(mapped), b"") if part == 0 else b""
            places.append(writer.add(coder.compress(b"".join(gaps.values()), dictionary)))
        return places


def read_piece(
    layout: Layout, group: Group, handles: Sequence[BinaryIO], start: int, form: blocks.Form
) -> blocks.Piece:
    """Read some rows of every array of a group. Raises DataError when a file became shorter."""
    piece = {}
    for role, place in group.members.items():
        array = layout.array(place)
        dtype = blocks.word(array.kind)
        data = bytearray(form.rows * form.columns * dtype.itemsize)
        if os.preadv(handles[place[0]].fileno(), [data], array.offset + start * dtype.itemsize) != len(data):
            raise DataError(f"{layout.maps[place[0]].path} became shorter while it was being packed")
        piece[role] = np.frombuffer(data, dtype)
    return piece


def note_digests(layout: Layout, handles: Sequence[BinaryIO], reference: Reference) -> None:
    """Put the digests of the rows of every table of a checkpoint into `reference`."""
    for g, group in enumerate(layout.groups):
        if blocks.is_table(layout.shape(group)):
            for start, form in layout.pieces(group):
                piece = read_piece(layout, group, handles, start, form)
                reference.write_digests(g, start // form.columns, blocks.row_digests(piece, form))
    reference.has_digests = True


def _sha256(handle: BinaryIO) -> str:
    digest, at = hashlib.sha256(), 0
    while data := os.pread(handle.fileno(), 1 << 20, at):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()
