"""Entropy coding of byte-sized symbols: a stored integer table and rANS (`constriction`), zstd for headers.

Why two coders: on quantiser levels rANS stays within 0.1 % of the entropy where zstd needs 29 to 48 % more
(benchmarks/checkpoints/coders.py), while for JSON and pickle skeletons zstd's matches win. Tables are stored as
16-bit integers, so that both sides derive their model from the same numbers on every machine.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessen.errors import ArtifactError, MissingExtraError

Bytes = NDArray[np.uint8]
Symbols = NDArray[np.integer[Any]]

_RAW, _CONSTANT, _ANS, _WIDE = 0, 1, 2, 3
"""Methods: as it is; one symbol; rANS with a table; the same with a table of more than 65535 symbols or bytes."""
_TABLE_TOTAL = 1 << 16
_LARGEST_BLOB = 1 << 31


def zstd() -> Any:
    """Import `zstandard`. Raises MissingExtraError."""
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("checkpoints", "zstandard", "a checkpoint archive") from error
    return zstandard


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise MissingExtraError("checkpoints", "constriction", "a checkpoint archive") from error
    return constriction.stream


def compress(raw: bytes, dictionary: bytes = b"", level: int = 9) -> bytes:
    """Compress bytes with zstd, with `dictionary` as text that both sides already have."""
    library = zstd()
    extra = {"dict_data": library.ZstdCompressionDict(dictionary, dict_type=library.DICT_TYPE_RAWCONTENT)}
    return bytes(library.ZstdCompressor(level=level, **(extra if dictionary else {})).compress(raw))


def decompress(blob: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """Undo `compress`; `size` is the exact length expected. Raises ArtifactError."""
    library = zstd()
    extra = {"dict_data": library.ZstdCompressionDict(dictionary, dict_type=library.DICT_TYPE_RAWCONTENT)}
    try:
        if library.frame_content_size(blob) != size or size > _LARGEST_BLOB:
            raise ArtifactError(f"a compressed block does not declare the expected {size} bytes")
        return bytes(library.ZstdDecompressor(**(extra if dictionary else {})).decompress(blob, max_output_size=size))
    except library.ZstdError as error:
        raise ArtifactError(f"a compressed block is damaged: {error}") from error


# -- parts: a sequence of byte strings in one ------------------------------------------------------------------
def join(parts: list[bytes]) -> bytes:
    """Concatenate byte strings with their lengths (uint32) in front."""
    return struct.pack(f"<H{len(parts)}I", len(parts), *map(len, parts)) + b"".join(parts)


def split(blob: bytes) -> list[bytes]:
    """Undo `join`. Raises ArtifactError when the lengths do not add up."""
    if len(blob) < 2:
        raise ArtifactError("a block is cut short")
    (count,) = struct.unpack_from("<H", blob)
    start = 2 + 4 * count
    if len(blob) < start:
        raise ArtifactError("a block is cut short")
    lengths = struct.unpack_from(f"<{count}I", blob, 2)
    if start + sum(lengths) != len(blob):
        raise ArtifactError("the parts of a block do not add up to its length")
    parts = []
    for length in lengths:
        parts.append(blob[start : start + length])
        start += length
    return parts


# -- symbols ---------------------------------------------------------------------------------------------------
def entropy_bytes(counts: NDArray[np.integer[Any]]) -> float:
    """Return the size in bytes that ideal coding of symbols with these counts would have."""
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present.sum() / present)).sum() / 8) if present.size else 0.0


def encode(symbols: Symbols) -> bytes:
    """Code unsigned symbols (any shape, values below 65536) at their empirical entropy.

    Layout: one method byte; then for rANS the table (zstd, uint16 per symbol up to the largest) and the words.
    """
    flat = np.ascontiguousarray(symbols).reshape(-1)
    if flat.size == 0:
        return bytes([_CONSTANT, 0, 0])
    counts = np.bincount(flat)
    if np.count_nonzero(counts) == 1:
        return struct.pack("<BH", _CONSTANT, counts.size - 1)
    if entropy_bytes(counts) > 0.99 * flat.nbytes:
        return bytes([_RAW]) + flat.tobytes()
    table = _table(counts)
    packed = compress(table.tobytes(), level=3)
    coder = _constriction().stack.AnsCoder()
    coder.encode_reverse(flat.astype(np.int32), _model(table))
    words = coder.get_compressed().astype("<u4").tobytes()
    if max(table.size, len(packed)) < 1 << 16:
        return struct.pack("<BHH", _ANS, table.size, len(packed)) + packed + bytes(words)
    return struct.pack("<BII", _WIDE, table.size, len(packed)) + packed + bytes(words)


def decode(blob: bytes, count: int, dtype: Any = np.uint8) -> NDArray[Any]:
    """Undo `encode` into `count` symbols of `dtype`. Raises ArtifactError for a block that cannot be one."""
    kind = blob[0] if blob else -1
    if kind == _CONSTANT and len(blob) == 3:
        return np.full(count, struct.unpack_from("<H", blob, 1)[0], dtype)
    if kind == _RAW and len(blob) == 1 + count * np.dtype(dtype).itemsize:
        return np.frombuffer(blob, dtype, count, 1)
    head = struct.Struct("<BII" if kind == _WIDE else "<BHH")
    if kind not in (_ANS, _WIDE) or len(blob) < head.size:
        raise ArtifactError("a coded block has an unknown kind or a wrong length")
    _, symbols, length = head.unpack_from(blob)
    if symbols > 1 << 16:
        raise ArtifactError("a coded block has a table of more symbols than there are")
    table = np.frombuffer(decompress(blob[head.size : head.size + length], 2 * symbols), "<u2")
    words = blob[head.size + length :]
    if symbols < 2 or len(words) % 4 or not table.any():
        raise ArtifactError("a coded block has a wrong length")
    try:
        coder = _constriction().stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
        return np.asarray(coder.decode(_model(table), count)).astype(dtype)
    except ValueError as error:
        raise ArtifactError(f"a coded block is damaged: {error}") from error


def _table(counts: NDArray[np.integer[Any]]) -> NDArray[np.uint16]:
    """Scale counts to 16 bits; a symbol that occurs keeps at least one unit."""
    scaled = np.rint(counts * ((_TABLE_TOTAL - 1) / counts.max()))
    return np.where(counts > 0, np.maximum(scaled, 1), 0).astype("<u2")


def _model(table: NDArray[np.uint16]) -> Any:
    weights = table.astype(np.float32)
    return _constriction().model.Categorical(weights / weights.sum(dtype=np.float64).astype(np.float32), perfect=False)


def encode_given(symbols: Symbols, context: NDArray[np.uint8]) -> list[bytes]:
    """Code symbols with one table per context value (0..255); the context must be known when decoding."""
    order = np.argsort(context, kind="stable")
    ordered = symbols[order]
    return [encode(ordered[start:end]) for start, end in _runs(context)]


def _runs(context: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return where each context value that occurs begins and ends once sorted."""
    ends = np.cumsum(np.bincount(context, minlength=1))
    return [
        (int(start), int(end)) for start, end in zip(np.concatenate([[0], ends]), ends, strict=False) if start < end
    ]


def decode_given(parts: list[bytes], context: NDArray[np.uint8], dtype: Any = np.uint8) -> NDArray[Any]:
    """Undo `encode_given`; consumes its blocks from the front of `parts`."""
    order = np.argsort(context, kind="stable")
    ordered = np.empty(context.size, dtype)
    for start, end in _runs(context):
        ordered[start:end] = decode(take(parts), end - start, dtype)
    symbols = np.empty_like(ordered)
    symbols[order] = ordered
    return symbols


def take(parts: list[bytes]) -> bytes:
    """Remove and return the first part. Raises ArtifactError when none is left."""
    if not parts:
        raise ArtifactError("a block has fewer parts than its kind needs")
    return parts.pop(0)


# -- masks: one bit per element, eight to a symbol --------------------------------------------------------------
def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """Code booleans eight to a symbol: an eighth of the symbols, at the same entropy or below."""
    return encode(np.packbits(mask))


def decode_mask(blob: bytes, count: int) -> NDArray[np.bool_]:
    """Undo `encode_mask` into `count` booleans."""
    return np.unpackbits(decode(blob, -(-count // 8)), count=count).view(np.bool_)
