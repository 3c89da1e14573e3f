"""One step of an archive as one file: coded blocks, then a footer that says what they are.

    magic | block block block ... | footer (zstd JSON) | uint64 footer length | SHA-256 of the footer | magic

Blocks are written as they are made, so a step never has to fit in memory. The file appears under its name only when
it is whole (temporary name, flush, rename).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lessen import files
from lessen.checkpoints import coder
from lessen.errors import ArtifactError

MAGIC = b"LSCKPT01"
_TAIL = struct.Struct("<QQ32s8s")
MAX_FOOTER = 1 << 26


@dataclass(frozen=True)
class Block:
    """The place of a coded block, and its CRC-32."""

    offset: int
    length: int
    checksum: int

    def as_json(self) -> list[int]:
        """Return the three numbers."""
        return [self.offset, self.length, self.checksum]


class FrameWriter:
    """Appends blocks to a frame that is being written."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self.size = handle, 0
        self._write(MAGIC)

    def _write(self, data: bytes) -> None:
        files.FILES.write(self._handle, data)
        self.size += len(data)

    def add(self, data: bytes) -> list[int]:
        """Write one block and return its place as JSON."""
        block = Block(self.size, len(data), zlib.crc32(data))
        self._write(data)
        return block.as_json()

    def finish(self, footer: dict[str, Any]) -> str:
        """Write the footer and return its SHA-256."""
        raw = json.dumps(footer, separators=(",", ":"), allow_nan=False).encode()
        packed = coder.compress(raw, level=12)
        digest = hashlib.sha256(packed)
        self._write(packed + _TAIL.pack(len(packed), len(raw), digest.digest(), MAGIC))
        return digest.hexdigest()


@contextmanager
def writing_frame(path: Path) -> Iterator[FrameWriter]:
    """Write a frame that appears at `path` when the block ends well, and leaves nothing otherwise.

    Raises:
        OutputError: the disk is full or cannot be written.
    """
    with files.atomic_stream(path) as handle:
        yield FrameWriter(handle)


class Frame:
    """A frame opened for reading: its footer, checked, and its blocks, checked as they are read."""

    def __init__(self, path: Path, digest: str) -> None:
        """Open `path`, whose footer must have this SHA-256. Raises ArtifactError."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise ArtifactError(f"{path} cannot be opened: {error.strerror}; copy the archive again") from error
        try:
            self.footer = self._read_footer(digest)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Frame:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_footer(self, digest: str) -> dict[str, Any]:
        size = self._size = os.fstat(self._descriptor).st_size
        damaged = ArtifactError(f"{self.path} is cut short or damaged at its end; copy the archive again")
        if size < len(MAGIC) + _TAIL.size:
            raise damaged
        packed_size, raw_size, recorded, magic = _TAIL.unpack(os.pread(self._descriptor, _TAIL.size, size - _TAIL.size))
        if magic != MAGIC or packed_size > size - _TAIL.size - len(MAGIC) or raw_size > MAX_FOOTER:
            raise damaged
        packed = os.pread(self._descriptor, packed_size, size - _TAIL.size - packed_size)
        if hashlib.sha256(packed).digest() != recorded or recorded.hex() != digest:
            raise damaged
        footer: dict[str, Any] = files.parse_json(coder.decompress(packed, raw_size), str(self.path))
        return footer

    def read(self, place: list[int], what: str) -> bytes:
        """Return one block. Raises ArtifactError naming `what` if it is not what was written."""
        block = Block(*place)
        # never more than there is: what is longer than the file asks for memory, not for data
        length = min(block.length, max(0, self._size - block.offset))
        data = os.pread(self._descriptor, length, block.offset) if length else b""
        if len(data) != block.length or zlib.crc32(data) != block.checksum:
            raise ArtifactError(f"{what} in {self.path} is damaged: its checksum differs; nothing was loaded")
        return data
