"""The head of a GGUF file, read before a library maps the rest: is it whole, and can every tensor be read?

magic "GGUF", version, counts of tensors and keys | keys with values | name, sizes, type, offset of each tensor | data
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from lessen.errors import DataError, MissingExtraError

MAGIC = b"GGUF"
ALIGNMENT_KEY, ALIGNMENT = b"general.alignment", 32
CUT_KEY = b"tokenizer.ggml.pre"
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each kind of number."""
_MOST = 1 << 32


class _Cut(Exception):
    """The file ends where more was announced."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    elements: int
    row: int
    kind: int
    offset: int


def check_gguf(path: Path) -> str | None:
    """Refuse a GGUF file that is cut short, of a foreign byte order or version, or holds a tensor of an unknown type.

    Returns:
        The name that the file gives to how text is cut before tokens are merged, if it gives one.

    Raises:
        DataError: what is wrong, of which tensor.
        MissingExtraError: gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("hf", "gguf", "reading a GGUF file") from error
    size = path.stat().st_size
    with path.open("rb") as handle:
        try:
            tensors, start, cut = _read(handle, path)
        except (_Cut, OverflowError, MemoryError) as error:
            raise DataError(f"{path} is cut short: it ends at byte {size}, inside of its own header") from error
    sizes = {int(kind): found for kind, found in gguf.GGML_QUANT_SIZES.items()}
    for tensor in tensors:
        end = start + tensor.offset + _bytes(tensor, sizes, gguf, path)
        if end > size:
            raise DataError(
                f"{path} is cut short: tensor {tensor.name!r} ends at byte {end}, the file at byte {size}; "
                "fetch it again"
            )
    return cut


def _bytes(tensor: _Tensor, sizes: dict[int, tuple[int, int]], gguf: Any, path: Path) -> int:
    plain = {int(gguf.GGMLQuantizationType[name]) for name in ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")}
    readable = plain | {int(kind) for kind in gguf.quants._type_traits}
    if tensor.kind not in readable:
        known = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
        kind = known.get(tensor.kind, f"number {tensor.kind}")
        raise DataError(
            f"{path}: tensor {tensor.name!r} is of type {kind}, which gguf {_version()} cannot read; "
            "write it as Q8_0 or F16"
        )
    block, width = sizes[tensor.kind]
    if tensor.row % block:
        raise DataError(f"{path}: tensor {tensor.name!r} has rows of {tensor.row}, no multiple of its block of {block}")
    return tensor.elements // block * width


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")


def _read(handle: BinaryIO, path: Path) -> tuple[list[_Tensor], int, str | None]:
    """Return the tensors, the byte at which data start, and the name of the cut."""
    if _take(handle, 4) != MAGIC:
        raise DataError(f"{path} is no GGUF file: it does not begin with the letters GGUF")
    version, count, keys = _number(handle, 4), _number(handle, 8), _number(handle, 8)
    if version not in (2, 3):
        raise DataError(f"{path} is GGUF of version {version}, or of another byte order; versions 2 and 3 are read")
    alignment, cut = ALIGNMENT, None
    for _ in range(keys):
        key, kind = _string(handle), _number(handle, 4)
        if key == ALIGNMENT_KEY and kind == 4:
            alignment = max(1, _number(handle, 4))
        elif key == CUT_KEY and kind == _STRING:
            cut = _string(handle).decode("utf-8", "replace")
        else:
            _skip(handle, kind, path)
    tensors = []
    for _ in range(count):
        name = _string(handle).decode("utf-8", "replace")
        shape = [_number(handle, 8) for _ in range(min(_number(handle, 4), 8))]
        tensors.append(_Tensor(name, prod(shape), shape[0] if shape else 1, _number(handle, 4), _number(handle, 8)))
    return tensors, -(-handle.tell() // alignment) * alignment, cut


def _skip(handle: BinaryIO, kind: int, path: Path) -> None:
    if kind == _STRING:
        _string(handle)
    elif kind == _ARRAY:
        inner, count = _number(handle, 4), _number(handle, 8)
        if inner in _NUMBERS:
            _take(handle, _NUMBERS[inner] * count)
        else:
            for _ in range(count):
                _skip(handle, inner, path)
    elif kind in _NUMBERS:
        _take(handle, _NUMBERS[kind])
    else:
        raise DataError(f"{path} is damaged: its header holds a value of the unknown kind {kind}")


def _string(handle: BinaryIO) -> bytes:
    return _take(handle, _number(handle, 8))


def _number(handle: BinaryIO, size: int) -> int:
    form = {4: "<I", 8: "<Q"}[size]
    return int(struct.unpack(form, _take(handle, size))[0])


def _take(handle: BinaryIO, count: int) -> bytes:
    raw = handle.read(count) if count < _MOST else b""
    if len(raw) != count:
        raise _Cut
    return raw
