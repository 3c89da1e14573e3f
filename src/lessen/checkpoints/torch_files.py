"""Torch files (zip archives that torch.save writes): which record is which tensor, and keeping a rewritten one whole.

    archive/data.pkl     the index: a pickle that names the storage of every tensor, its dtype, shape and place
    archive/data/0 ...   the records: one storage each, uncompressed

The index is read as data (`pickles`), never executed, and each tensor is looked up under the record that it names.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lessen.checkpoints.dtypes import NAMES, SIZES
from lessen.checkpoints.harmless import strangers
from lessen.checkpoints.pickles import Built, Named, Persistent, entries, read_pickle
from lessen.errors import ArtifactError

MAX_INDEX = 1 << 29
_DEPTH = 200
_STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16",
    "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64", "ComplexDouble": "C128", "QInt8": "I8",
    "QUInt8": "U8", "QInt32": "I32",
}  # fmt: skip
"""Dtype by the kind of a storage; what is missing (untyped, packed) is bytes."""

Found = tuple[str, str, tuple[int, ...], int, int]
"""Name, dtype, shape, offset in the file and bytes of an array."""


@dataclass
class _Storage:
    """One record, and the tensors that the index says are in it."""

    nbytes: int
    kinds: set[str] = field(default_factory=set)
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    names: list[str] = field(default_factory=list)


class TorchFile:
    """The index and the records of a torch file, read without executing anything of it."""

    def __init__(self, file: Path, allow: Collection[str] = (), window: tuple[int, int] | None = None) -> None:
        """Read the index of `file`.

        Args:
            allow: dotted names of classes that it may hold besides the usual ones; none is ever imported.
            window: offset and length of a torch file inside `file`; None where it is the whole.

        Raises:
            ArtifactError: not a complete torch file, or opening it would run code, which the message names.
        """
        self.file = file
        if not _is_zip(file, window):
            raise ArtifactError(
                f"{file} is not a complete torch zip file: cut short, or saved by torch before 1.6 (load and save it "
                "again)"
            )
        self.records, index, self.swapped = _records(file, window)
        self.tree, names = read_pickle(index, str(file))
        if unknown := strangers(names, allow):
            raise ArtifactError(
                f"{file} is refused: to open it would run code of the file (it asks for {unknown[0]}); save tensors, "
                f"numbers, strings, lists and dicts only, or name it with --allow {unknown[0]} if it is yours"
            )

    def arrays(self) -> list[Found]:
        """Return the arrays of the file by offset; a record that no tensor names is an array of bytes."""
        storages = self._storages()
        found: list[Found] = []
        ordered = sorted(self.records.items(), key=lambda item: item[1])
        for number, (key, (offset, nbytes)) in enumerate(ordered):
            storage = storages.get(key)
            if storage is None or storage.nbytes != nbytes or not storage.names or self.swapped:
                found.append((f"record {number}", "U8", (nbytes,), offset, nbytes))
                continue
            kind = next(iter(storage.kinds)) if len(storage.kinds) == 1 else "U8"  # read as two dtypes: bytes
            count = nbytes // SIZES[kind]
            whole = [shape for shape in storage.shapes if math.prod(shape) == count]
            shape = whole[0] if len(whole) == 1 else (count,)
            found.append((min(storage.names, key=_plainness), kind, shape, offset, nbytes))
        return found

    def _storages(self) -> dict[str, _Storage]:
        found: dict[str, _Storage] = {}
        for name, tensor in tensors(self.tree):
            if tensor.key not in self.records:
                continue
            entry = found.setdefault(tensor.key, _Storage(tensor.nbytes))
            entry.names.append(name)
            entry.kinds.add(tensor.kind)
            if tensor.offset == 0 and tensor.shape is not None and _is_contiguous(tensor.shape, tensor.stride):
                entry.shapes.add(tensor.shape)
        return found

    def number(self, node: Any) -> int | None:
        """Return a whole number that is a Python int, a NumPy scalar or a tensor of one element; else None."""
        if isinstance(node, bool):
            return None
        if isinstance(node, int):
            return node
        if isinstance(node, Built) and node.name.endswith("multiarray.scalar"):
            return _numpy_number(node)
        read = next((tensor for _, tensor in tensors(node)), None) if isinstance(node, Built) else None
        if read is None or read.shape not in ((), (1,)) or read.kind not in _NUMPY or self.swapped:
            return None
        offset, nbytes = self.records.get(read.key, (0, 0))
        size = SIZES[read.kind]
        if (read.offset + 1) * size > nbytes:
            return None
        with self.file.open("rb") as handle:
            handle.seek(offset + read.offset * size)
            return _whole(np.frombuffer(handle.read(size), _NUMPY[read.kind])[0])


_NUMPY = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1"}


def read_torch(file: Path, allow: Collection[str] = ()) -> list[Found]:
    """Return the arrays of a torch file by offset. Raises ArtifactError as `TorchFile` does."""
    return TorchFile(file, allow).arrays()


def _numpy_number(node: Built) -> int | None:
    try:
        dtype, raw = node.arguments
        data = raw.arguments[0].encode("latin1") if isinstance(raw, Built) else raw
        return _whole(np.frombuffer(data, np.dtype(dtype.arguments[0]))[0])
    except Exception:  # not a plain number: no step
        return None


def _whole(value: Any) -> int | None:
    return int(value) if np.isfinite(value) and value == np.floor(value) else None


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    step = 1
    for size, distance in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and distance != step:
            return False
        step *= size
    return True


# -- tensors of the index ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tensor:
    """What the index says of a tensor; `shape` None for a storage on its own."""

    key: str
    kind: str
    nbytes: int
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0


def tensors(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its path, such as `optimizer/state/0/exp_avg`."""
    yield from _walk(tree, "", set(), 0)


def _walk(node: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Persistent):
        if (storage := _storage(node)) is not None:
            yield name, storage
        return
    if not isinstance(node, (Built, dict, list, tuple)) or depth > _DEPTH:
        return
    if isinstance(node, Built) and (tensor := _tensor(node)) is not None:
        yield name, tensor
        return
    if id(node) in seen:  # a part that the file refers to twice is told once
        return
    seen.add(id(node))
    for key, value in _parts(node):
        yield from _walk(value, f"{name}/{key}" if name and key != "" else name or key, seen, depth + 1)


def _parts(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a container or object with their names; "" for one that has the name of the whole."""
    if isinstance(node, (list, tuple)):
        yield from ((str(k), value) for k, value in enumerate(node))
        return
    if isinstance(node, Built):
        called = node.name.rpartition(".")[2]
        arguments = node.arguments if isinstance(node.arguments, tuple) else (node.arguments,)
        if called in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            yield "", arguments[0]
            return
        if called == "_rebuild_from_type_v2" and len(arguments) > 2:
            yield "", Built(arguments[0], arguments[2])
            yield "", arguments[3:]
            return
        if called == "_rebuild_sparse_tensor" and len(arguments) == 2 and isinstance(arguments[1], tuple):
            names = ("indices", "values") if len(arguments[1]) < 4 or _is_flag(arguments[1][3]) else _COMPRESSED
            yield from zip(names, arguments[1], strict=False)
            return
        yield from ((str(k), value) for k, value in enumerate(arguments))
        yield from ((str(k), value) for k, value in enumerate(node.items))
    yield from ((_key(key), value) for key, value in entries(node))


_COMPRESSED = ("compressed_indices", "plain_indices", "values")


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _key(key: Any) -> str:
    return key.name if isinstance(key, (Named, Built)) else str(key)


def _storage(node: Any) -> Tensor | None:
    """Return what a persistent id ("storage", kind, key, location, count) names."""
    if not isinstance(node, Persistent) or not isinstance(node.key, tuple) or len(node.key) < 5:
        return None
    word, kind, key, _, count = node.key[:5]
    if word != "storage" or not isinstance(kind, Named) or not isinstance(key, str) or type(count) is not int:
        return None
    name = _STORAGES.get(kind.name.rpartition(".")[2].removesuffix("Storage"), "U8")
    return Tensor(key, name, count * SIZES[name])


def _tensor(node: Built) -> Tensor | None:
    """Return what a call of one of torch's `_rebuild` functions would build from one storage."""
    called = node.name.rpartition(".")[2]
    if called not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor"):
        return None
    arguments = node.arguments
    if not isinstance(arguments, tuple) or len(arguments) < 4:
        return None
    storage, (offset, shape, stride) = _storage(arguments[0]), arguments[1:4]
    shape, stride = _numbers(shape), _numbers(stride)
    if storage is None or type(offset) is not int or shape is None or stride is None or len(shape) != len(stride):
        return None
    kind = storage.kind
    if called == "_rebuild_tensor_v3" and len(arguments) > 6 and isinstance(arguments[6], Named):
        kind = NAMES.get(arguments[6].name.removeprefix("torch."), "")
        if not kind or storage.nbytes % SIZES[kind]:  # of a dtype newer than this release: bytes
            return Tensor(storage.key, "U8", storage.nbytes)
    return Tensor(storage.key, kind, storage.nbytes, shape, stride, offset)


def _numbers(node: Any) -> tuple[int, ...] | None:
    if isinstance(node, Built) and node.name == "torch.Size" and node.arguments:
        node = node.arguments[0]
    if not isinstance(node, (tuple, list)) or not all(type(x) is int and x >= 0 for x in node):
        return None
    return tuple(node)


def _plainness(name: str) -> tuple[int, str]:
    return name.count("/"), name


# -- the zip around it ---------------------------------------------------------------------------------------------
class Window(io.RawIOBase):
    """A part of a file, read as if it were a file."""

    def __init__(self, file: Path, window: tuple[int, int] | None) -> None:
        """Open `file`; `window` is (offset, length), None the whole."""
        self._handle = file.open("rb")
        self._offset, self._length = window or (0, file.stat().st_size)
        self._at = 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return the place in the part."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the part. Raises OSError before its start."""
        at = offset + (0, self._at, self._length)[whence]
        if at < 0:
            raise OSError("a place before the start")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        """Read what there is."""
        self._handle.seek(self._offset + self._at)
        data = self._handle.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()
        super().close()


def _is_zip(file: Path, window: tuple[int, int] | None) -> bool:
    try:
        with Window(file, window) as handle:
            return zipfile.is_zipfile(handle)
    except (zipfile.BadZipFile, OSError):
        return False


def _records(file: Path, window: tuple[int, int] | None) -> tuple[dict[str, tuple[int, int]], bytes, bool]:
    """Return (offset, bytes) of the records by key, the index, and whether numbers are in the other byte order."""
    records: dict[str, tuple[int, int]] = {}
    index, swapped, begin = b"", False, window[0] if window else 0
    try:
        with Window(file, window) as handle, zipfile.ZipFile(handle) as archive:
            for info in archive.infolist():
                folder, _, name = info.filename.rpartition("/")
                if name == "data.pkl":
                    index = _small(archive, info, file)
                elif name == "byteorder":
                    swapped = _small(archive, info, file) == b"big"
                elif folder.endswith("/data") and info.file_size:
                    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                        raise ArtifactError(
                            f"{file} holds compressed records; load it and save it again with torch.save"
                        )
                    if name in records:
                        raise ArtifactError(f"{file} holds record {name!r} twice; save it again with torch.save")
                    records[name] = (begin + _start(handle, info), info.file_size)
    except ArtifactError:
        raise
    except Exception as error:  # zipfile lets through whatever goes wrong below it
        raise ArtifactError(f"{file} is a damaged zip file: {error}") from error
    if not index:
        raise ArtifactError(f"{file} is a zip file without an index (data.pkl), so no torch checkpoint")
    return records, index, swapped


def _small(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> bytes:
    if info.file_size > MAX_INDEX or info.compress_type != zipfile.ZIP_STORED:
        raise ArtifactError(
            f"{file} has a compressed index or one of {info.file_size} bytes; save it again with torch.save"
        )
    return archive.read(info)


def _start(handle: Any, info: zipfile.ZipInfo) -> int:
    handle.seek(info.header_offset)
    names, extra = struct.unpack("<HH", handle.read(30)[26:30])
    return int(info.header_offset + 30 + names + extra)


def refresh_sums(
    file: Path, gaps: dict[int, bytearray], sums: Mapping[int, int], windows: Sequence[tuple[int, int]] | None = None
) -> None:
    """Give the records of a torch file whose data change new CRC-32 values, in the bytes around them.

    Args:
        gaps: the bytes outside arrays, by file offset; changed in place.
        sums: CRC-32 of the new data by file offset of the record.
        windows: (offset, length) of the torch files inside the file; None where it is one.
    """
    starts = sorted(gaps)
    for window in windows if windows is not None else [(0, file.stat().st_size)]:
        with Window(file, window) as handle, zipfile.ZipFile(handle) as archive:
            at = archive.start_dir
            for info in archive.infolist():
                start = _start(handle, info)
                handle.seek(at + 28)
                length = 46 + sum(struct.unpack("<HHH", handle.read(6)))
                if window[0] + start in sums:
                    value = struct.pack("<I", sums[window[0] + start])
                    _overwrite(gaps, starts, window[0] + at + 16, value)
                    handle.seek(start + info.file_size)
                    if handle.read(4) == b"PK\x07\x08":
                        _overwrite(gaps, starts, window[0] + start + info.file_size + 4, value)
                at += length


def _overwrite(gaps: dict[int, bytearray], starts: list[int], offset: int, value: bytes) -> None:
    start = starts[max(0, bisect_right(starts, offset) - 1)]
    if start <= offset and offset + len(value) <= start + len(gaps[start]):
        gaps[start][offset - start : offset - start + len(value)] = value
