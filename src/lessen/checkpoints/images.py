"""What a checkpoint file is to the archive: byte ranges that are arrays, and the skeleton around them.

Nothing is ever unpickled: a torch file is asked for its tensors through `torch.load(weights_only=True, mmap=True)`,
which refuses anything that could run code, and those tensors are then located as byte ranges of the file. Because
arrays are byte ranges, any dtype, odd length, view or tied weight comes back as it was, and in mode `exact` the file
that `unpack` writes is byte for byte the file that was packed.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lessen.errors import ArtifactError

MAX_HEADER = 100 << 20
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_TORCH = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
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
class Image:
    """One file of a checkpoint: its path inside the checkpoint, size, and arrays by offset."""

    path: str
    size: int
    arrays: tuple[Array, ...]
    container: str = "opaque"

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the bytes that belong to no array."""
        at = 0
        for array in self.arrays:
            if array.offset > at:
                yield at, array.offset - at
            at = array.offset + array.nbytes
        if at < self.size:
            yield at, self.size - at


def read_image(file: Path, path: str, must_load: bool = True) -> Image:
    """Find the arrays of one file.

    Args:
        path: the name the file has inside the checkpoint.
        must_load: refuse a torch file that does not load; False keeps such a file as plain bytes, unopened.

    Raises:
        ArtifactError: a pickle that would run code, a truncated or inconsistent file.
    """
    size = file.stat().st_size
    if file.suffix == ".safetensors":
        return _checked(Image(path, size, tuple(_safetensors(file, size)), container="safetensors"))
    if file.suffix in TORCH_SUFFIXES and must_load:
        return _checked(Image(path, size, tuple(_torch(file)), container="torch"))
    return Image(path, size, ())


def _checked(image: Image) -> Image:
    """Refuse arrays that overlap, leave the file or do not match their shape."""
    at = 0
    for array in image.arrays:
        if array.kind not in SIZES or array.nbytes != SIZES[array.kind] * math.prod(array.shape):
            raise ArtifactError(f"{image.path}: tensor {array.name!r} has {array.nbytes} bytes, not those of its shape")
        if array.offset < at or array.offset + array.nbytes > image.size:
            raise ArtifactError(f"{image.path}: tensor {array.name!r} overlaps another or leaves the file")
        at = array.offset + array.nbytes
    return image


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
                Array(name, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin)
                for name, entry in entries
                for begin, end in [entry["data_offsets"]]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{file} has a malformed safetensors header: {error!r}") from error
    return sorted((array for array in arrays if array.nbytes), key=lambda array: array.offset)


# -- torch zip files ---------------------------------------------------------------------------------------------
@dataclass
class _Found:
    """One storage that the loaded tree refers to."""

    pointer: int
    nbytes: int
    kind: str
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    names: list[str] = field(default_factory=list)


def _torch(file: Path) -> list[Array]:
    if not zipfile.is_zipfile(file):
        raise ArtifactError(
            f"{file} is not a complete torch zip file: cut short, or saved by torch before 1.6 (load and save it again)"
        )
    records = _records(file)
    tree = load_tree(file)
    found: dict[int, _Found] = {}
    for name, tensor in _tensors(tree, ""):
        _note(found, name, tensor)
    base = _base(sorted(found), records, file)
    arrays = []
    for index, (offset, nbytes) in enumerate(sorted(records.items())):
        storage = found.get(base + offset)
        if storage is None or storage.nbytes != nbytes:
            arrays.append(Array(f"record {index}", "U8", (nbytes,), offset, nbytes))
            continue
        count = nbytes // SIZES[storage.kind]
        whole = [shape for shape in storage.shapes if math.prod(shape) == count]
        shape = whole[0] if len(whole) == 1 else (count,)
        arrays.append(Array(min(storage.names, key=_plainness), storage.kind, shape, offset, nbytes))
    return arrays


def load_tree(file: Path, mapped: bool = True) -> Any:
    """Load a torch file with weights only, memory-mapped or into memory.

    Raises:
        ArtifactError: damaged, or opening it would run code, which the message names.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it asks for {wanted.group(1)}" if wanted else str(error).rpartition("WeightsUnpickler error:")[2][:200]
        )
        raise ArtifactError(
            f"{file} is refused: to open it would run code of the file ({reason.strip()}); "
            "save tensors, numbers, strings, lists and dicts only"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged or no torch checkpoint: {str(error)[:200]}") from error


def _records(file: Path) -> dict[int, int]:
    """Return offset to size of the storage records of a torch zip file."""
    records = {}
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as handle:
            for info in archive.infolist():
                if "/data/" not in info.filename or info.file_size == 0:
                    continue
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                    raise ArtifactError(f"{file} holds compressed records; load it and save it again with torch.save")
                handle.seek(info.header_offset)
                local = handle.read(30)
                names, extra = struct.unpack("<HH", local[26:30])
                records[info.header_offset + 30 + names + extra] = info.file_size
    except (zipfile.BadZipFile, struct.error) as error:
        raise ArtifactError(f"{file} is a damaged zip file: {error}") from error
    return records


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a tree of dicts, lists and tuples with its path, such as `optimizer/state/0/exp_avg`."""
    if isinstance(tree, torch.Tensor):
        if tree.layout is torch.strided:
            yield name, tree
        elif tree.layout is torch.sparse_coo:
            yield f"{name}/indices", tree._indices()
            yield f"{name}/values", tree._values()
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}/{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            yield from _tensors(value, f"{name}/{key}" if name else str(key))


def _note(found: dict[int, _Found], name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _TORCH or tensor.is_quantized:
        return
    storage = tensor.untyped_storage()
    nbytes = storage.nbytes()
    if nbytes == 0 or nbytes % tensor.element_size():
        return
    entry = found.setdefault(storage.data_ptr(), _Found(storage.data_ptr(), nbytes, _TORCH[tensor.dtype]))
    entry.names.append(name)
    if tensor.is_contiguous() and tensor.storage_offset() == 0:
        entry.shapes.add(tuple(tensor.shape))


def _base(pointers: list[int], records: dict[int, int], file: Path) -> int:
    """Return the address at which the file is mapped: the one that puts every storage on a record."""
    if not pointers:
        return 0
    for offset in records:
        base = pointers[0] - offset
        if all(pointer - base in records for pointer in pointers):
            return base
    raise ArtifactError(f"{file}: its tensors do not lie where its index says; save it again with torch.save")


def _plainness(name: str) -> tuple[int, str]:
    return name.count("/"), name


def step_of(tree: Any) -> int | None:
    """Return the step a checkpoint says it was taken at, if it does."""
    if isinstance(tree, Mapping):
        for key in ("step", "global_step", "iteration", "num_steps"):
            value = tree.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
    return None


# -- keeping a rewritten zip consistent ---------------------------------------------------------------------------
def refresh_sums(file: Path, gaps: dict[int, bytearray], sums: Mapping[int, int]) -> None:
    """Give the records of a torch zip file whose data change new CRC-32 values, in the bytes around them.

    Args:
        gaps: the bytes outside arrays, by file offset; changed in place.
        sums: CRC-32 of the new data by file offset of the record.
    """
    starts = sorted(gaps)
    with zipfile.ZipFile(file) as archive, file.open("rb") as handle:
        at = archive.start_dir
        for info in archive.infolist():
            handle.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", handle.read(4)))
            handle.seek(at + 28)
            length = 46 + sum(struct.unpack("<HHH", handle.read(6)))
            if start in sums:
                value = struct.pack("<I", sums[start])
                _overwrite(gaps, starts, at + 16, value)
                handle.seek(start + info.file_size)
                if handle.read(4) == b"PK\x07\x08":
                    _overwrite(gaps, starts, start + info.file_size + 4, value)
            at += length


def _overwrite(gaps: dict[int, bytearray], starts: list[int], offset: int, value: bytes) -> None:
    start = starts[max(0, bisect_right(starts, offset) - 1)]
    if start <= offset and offset + len(value) <= start + len(gaps[start]):
        gaps[start][offset - start : offset - start + len(value)] = value
