"""What a checkpoint file is to the archive: byte ranges that are arrays, and the skeleton around them.

Which range is which tensor is read from the file's own table: the header of a safetensors file, the index and the
records of a torch file. Any dtype, odd length, view or tied weight comes back as it was, because arrays are byte
ranges, and in mode `exact` the file that `unpack` writes is byte for byte the file that was packed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lessen.checkpoints.distributed import SUFFIX, read_distributed
from lessen.checkpoints.dtypes import SIZES
from lessen.checkpoints.torch_files import read_torch
from lessen.errors import ArtifactError

MAX_HEADER = 100 << 20
TORCH_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt"})


@dataclass(frozen=True)
class Array:
    """One byte range of a file: `nbytes` from `offset`, numbers of `kind` with `shape`, known by `name`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class ByteMap:
    """One file of a checkpoint: its path inside the checkpoint, size, and arrays by offset."""

    path: str
    size: int
    arrays: tuple[Array, ...]
    container: str = "opaque"

    def gaps(self, coded: Collection[int] | None = None) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the bytes that belong to no array, or to none of the arrays `coded`."""
        at = 0
        for j, array in enumerate(self.arrays):
            if coded is not None and j not in coded:
                continue
            if array.offset > at:
                yield at, array.offset - at
            at = array.offset + array.nbytes
        if at < self.size:
            yield at, self.size - at


def is_torch(name: str) -> bool:
    """Say whether a file of this name is one that torch.save writes: .pt, .pth, .bin, .ckpt, .pth.tar and the like."""
    path = Path(name)
    return path.suffix in TORCH_SUFFIXES or (path.suffix == ".tar" and Path(path.stem).suffix in TORCH_SUFFIXES)


def read_byte_map(file: Path, path: str, must_load: bool = True, allow: Collection[str] = ()) -> ByteMap:
    """Find the arrays of one file.

    Args:
        path: the name the file has inside the checkpoint.
        must_load: refuse a torch file that does not load; False keeps such a file as plain bytes, unopened.
        allow: dotted names of classes that torch files may hold besides the usual ones; none is ever imported.

    Raises:
        ArtifactError: a pickle that would run code, a truncated or inconsistent file.
    """
    size = file.stat().st_size
    if file.suffix == ".safetensors":
        return _checked(ByteMap(path, size, tuple(_safetensors(file, size)), container="safetensors"))
    if is_torch(file.name) and must_load:
        arrays = [Array(*found) for found in read_torch(file, allow)]
        return _checked(ByteMap(path, size, tuple(arrays), container="torch"))
    if file.suffix == SUFFIX:
        return _checked(
            ByteMap(path, size, tuple(Array(*found) for found in read_distributed(file, allow)), "distributed")
        )
    return ByteMap(path, size, ())


def _checked(mapped: ByteMap) -> ByteMap:
    """Refuse arrays that overlap, leave the file or do not match their shape."""
    at = 0
    for array in mapped.arrays:
        if array.kind not in SIZES or array.nbytes != SIZES[array.kind] * math.prod(array.shape):
            raise ArtifactError(
                f"{mapped.path}: tensor {array.name!r} has {array.nbytes} bytes, not those of its shape"
            )
        if array.offset < at or array.offset + array.nbytes > mapped.size:
            raise ArtifactError(f"{mapped.path}: tensor {array.name!r} overlaps another or leaves the file")
        at = array.offset + array.nbytes
    return mapped


# -- safetensors -------------------------------------------------------------------------------------------------
def _safetensors(file: Path, size: int) -> list[Array]:
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8).ljust(8, b"\xff"))
        if length > min(MAX_HEADER, size - 8):
            raise ArtifactError(f"{file} is not a safetensors file, or its header is cut short")
        try:
            header = json.loads(handle.read(length))
            entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
            arrays = [
                _array(name, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin)
                for name, entry in entries
                for begin, end in [entry["data_offsets"]]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{file} has a malformed safetensors header: {error!r}") from error
    return sorted((array for array in arrays if array.nbytes), key=lambda array: array.offset)


def _array(name: str, kind: str, shape: tuple[int, ...], offset: int, nbytes: int) -> Array:
    if kind == "F4" and shape and shape[-1] % 2 == 0:
        return Array(name, kind, (*shape[:-1], shape[-1] // 2), offset, nbytes)
    if kind not in SIZES and isinstance(kind, str):  # of a dtype newer than this release: bytes
        return Array(name, "U8", (nbytes,), offset, nbytes)
    return Array(name, kind, shape, offset, nbytes)
