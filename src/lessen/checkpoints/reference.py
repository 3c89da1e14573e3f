"""The step before, as unpacking would give it: what the next step is coded against, kept on disk, not in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lessen import files
from lessen.checkpoints.archive import Chain
from lessen.checkpoints.blocks import Form, Piece, is_table, word
from lessen.checkpoints.layout import Layout
from lessen.log import Log


class Reference:
    """Rebuilt arrays of one step in one temporary file inside the archive, read and replaced piece by piece."""

    def __init__(self, folder: Path, layout: Layout, with_moments: Sequence[bool]) -> None:
        """Make room for `layout`; groups whose flag in `with_moments` is false do not keep their first moment.

        Raises:
            OutputError: no room for one uncompressed checkpoint beside the archive.
        """
        self._layout = layout
        self._offsets: list[dict[str, int]] = []
        size = 0
        for group, whole in zip(layout.groups, with_moments, strict=True):
            offsets = {}
            for role, place in group.members.items():
                if whole or role != "first":
                    offsets[role] = size
                    size += layout.array(place).nbytes
            self._offsets.append(offsets)
        self._digests: dict[int, int] = {}
        for g, group in enumerate(layout.groups):
            if is_table(layout.shape(group)):
                self._digests[g] = size
                size += 8 * layout.shape(group)[0]
        self.has_digests = False
        """Whether the digests of the rows are those of the last step as it was packed (not as rebuilt)."""
        self._path = folder / f"{files.TEMPORARY}{os.getpid()}-reference"
        with files.writing(self._path):
            self._path.unlink(missing_ok=True)
            self._handle = self._path.open("x+b")
            files.claim(self._handle.fileno())
            self._handle.truncate(size)

    def close(self) -> None:
        """Remove the file."""
        self._handle.close()
        self._path.unlink(missing_ok=True)

    def load(self, chain: Chain, log: Log) -> None:
        """Fill in the last step of a chain. Raises ArtifactError."""
        last = len(chain.frames) - 1
        for g, group in enumerate(self._layout.groups):
            for p, (start, _) in enumerate(self._layout.pieces(group)):
                for _, piece in chain.rebuild(g, p, {last}):
                    self.write(g, start, piece)
            log.progress("reading the last step", g + 1, len(self._layout.groups))

    def read(self, group: int, start: int, form: Form) -> Piece:
        """Return the arrays kept of a piece."""
        piece = {}
        for role, offset in self._offsets[group].items():
            dtype = word(form.kinds[role])
            data = bytearray(form.rows * form.columns * dtype.itemsize)
            os.preadv(self._handle.fileno(), [data], offset + start * dtype.itemsize)
            piece[role] = np.frombuffer(data, dtype)
        return piece

    def write(self, group: int, start: int, piece: Piece) -> None:
        """Replace a piece."""
        with files.writing(self._path):
            for role, offset in self._offsets[group].items():
                words = np.ascontiguousarray(piece[role])
                os.pwrite(self._handle.fileno(), words.data.cast("B"), offset + start * words.itemsize)

    def read_digests(self, group: int, first: int, rows: int) -> NDArray[np.uint64] | None:
        """Return the digests of some rows of a table in the last step; None when they are not known."""
        if not self.has_digests:
            return None
        data = bytearray(8 * rows)
        os.preadv(self._handle.fileno(), [data], self._digests[group] + 8 * first)
        return np.frombuffer(data, np.uint64)

    def write_digests(self, group: int, first: int, digests: NDArray[np.uint64]) -> None:
        """Replace the digests of some rows of a table."""
        with files.writing(self._path):
            os.pwrite(self._handle.fileno(), digests.data.cast("B"), self._digests[group] + 8 * first)
