"""Bit-identical coding of one array, alone or against its predecessor.

Two ways, the smaller on a sample wins:

    planes   float bits rotated so that the exponent fills the top byte; top byte coded given a context, second byte
             given the top, the rest where it pays. They are for arrays that say nothing about their past (first
             moments).
    delta    numbers mapped to order-preserving integers and subtracted from a prediction; the bit length of the
             difference coded given the exponent of the prediction (an optimiser moves weights by similar absolute
             amounts, so the exponent says how many bits the step needs), then the leading bits, then raw bytes.

ZipNN (arXiv 2411.05239) codes planes without context or prediction; that is the neighbour to compare with.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessen.checkpoints import coder
from lessen.errors import ArtifactError

Words = NDArray[Any]
"""One-dimensional unsigned integers: the bits of the array being coded."""

_PLANES, _DELTA = 0, 1
_SAMPLE = 1 << 15
_CONTEXT_MINIMUM = 1024
"""A context with fewer elements shares the table of the others: its own would cost more than it saves."""

EXPONENT = {"F32": (23, 255), "BF16": (7, 255), "F16": (10, 31)}
"""Shift and mask of the exponent for the dtypes that get a context."""


def encode(
    words: Words, kind: str, reference: Words | None = None, given: Words | None = None, scale: float = 1.0
) -> bytes:
    """Code the bits of an array.

    Args:
        words: uint8, uint16, uint32 or uint64 [n].
        kind: dtype name as in safetensors, such as F32; floats get the float treatment.
        reference: the same array one step earlier, [n].
        given: another F32 array of this step that the decoder has by now, [n]; its exponent is the context of planes.
        scale: the reference times this is the prediction (second moments decay by a known factor). F32 only.
    """
    if reference is not None and words.itemsize <= 4:
        scale = float(np.float32(scale)) if kind == "F32" else 1.0
        predicted = _predict(reference, kind, scale)
        if _delta_is_smaller(words, predicted, kind):
            return coder.join([struct.pack("<Bf", _DELTA, scale), *_encode_delta(words, predicted, kind)])
    used = reference is not None and words.itemsize == 8
    source = words ^ reference if used and reference is not None else words
    return coder.join([struct.pack("<Bf", _PLANES, 0.0), *_encode_planes(source, "raw" if used else kind, given)])


def builds_on_reference(blob: bytes, width: int) -> bool:
    """Say whether `decode` needs the reference of what `encode` made of words of `width` bytes, given one."""
    return width == 8 or coder.split(blob)[0][0] == _DELTA


def decode(blob: bytes, count: int, kind: str, reference: Words | None, given: Words | None, width: int) -> Words:
    """Undo `encode` into `count` words of `width` bytes, with the same reference and context. Raises ArtifactError."""
    parts = coder.split(blob)
    head = coder.take(parts)
    if len(head) != 5:
        raise ArtifactError("an exact block has no header")
    way, scale = struct.unpack("<Bf", head)
    if way == _DELTA and reference is not None:
        return _decode_delta(parts, _predict(reference, kind, scale), kind)
    if way != _PLANES:
        raise ArtifactError("an exact block needs a reference that is not there")
    used = reference is not None and width == 8
    words = _decode_planes(parts, count, "raw" if used else kind, given, width)
    return words ^ reference if used and reference is not None else words


# -- planes ----------------------------------------------------------------------------------------------------
def _rotate(words: Words, kind: str) -> Words:
    """Move the sign bit from the top to the bottom, so that the top byte is (most of) the exponent."""
    return (words << 1) | (words >> (8 * words.itemsize - 1)) if kind in EXPONENT else words


def _context(given: Words | None, count: int) -> NDArray[np.uint8]:
    if given is None:
        return np.zeros(count, np.uint8)
    return _common((given >> 23).astype(np.uint8))


def _common(context: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Merge rare contexts into one; the decoder repeats this, so nothing is stored."""
    rare = np.bincount(context, minlength=256) < _CONTEXT_MINIMUM
    return np.where(rare, 0, np.arange(256)).astype(np.uint8)[context]


def _planes(words: Words) -> NDArray[np.uint8]:
    """Return [itemsize, n] bytes, most significant first."""
    width = words.itemsize
    little = words.astype(words.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(-1, width)
    return np.ascontiguousarray(little.T[::-1])


def _encode_planes(words: Words, kind: str, given: Words | None) -> list[bytes]:
    planes = _planes(_rotate(words, kind))
    parts = coder.encode_given(planes[0], _context(given, words.size))
    if len(planes) > 1:
        parts += coder.encode_given(planes[1], _common(planes[0]))
    return parts + [coder.encode(plane) for plane in planes[2:]]


def _decode_planes(parts: list[bytes], count: int, kind: str, given: Words | None, width: int) -> Words:
    planes = np.empty((width, count), np.uint8)
    planes[0] = coder.decode_given(parts, _context(given, count))
    if width > 1:
        planes[1] = coder.decode_given(parts, _common(planes[0]))
    for k in range(2, width):
        planes[k] = coder.decode(coder.take(parts), count)
    words = np.ascontiguousarray(planes[::-1].T).view(f"<u{width}").reshape(-1).astype(f"u{width}", copy=False)
    return (words >> 1) | (words << (8 * width - 1)) if kind in EXPONENT else words


# -- delta -----------------------------------------------------------------------------------------------------
def _predict(reference: Words, kind: str, scale: float) -> Words:
    if scale == 1.0 or kind != "F32":
        return reference
    with np.errstate(over="ignore", invalid="ignore"):
        product = (reference.view(np.float32) * np.float32(scale)).view(np.uint32)
    special = (product & 0x7F800000) == 0x7F800000  # what NaN times a number is depends on the machine
    return np.where(special, reference, product)


def _flip(words: Words, signed: bool, kind: str) -> Words:
    """Map float bits to integers in the order of the numbers (`signed` False), or back (True)."""
    if kind not in EXPONENT:
        return words
    top = words.dtype.type(1 << (8 * words.itemsize - 1))
    negative = (words & top) == 0 if signed else (words & top) != 0
    return np.where(negative, ~words, words ^ top)


def _zigzag(words: Words, predicted: Words, kind: str) -> Words:
    difference = _flip(words, False, kind) - _flip(predicted, False, kind)
    sign = difference.view(difference.dtype.str.replace("u", "i")) >> (8 * words.itemsize - 1)
    folded: Words = (difference << 1) ^ sign.view(difference.dtype)
    return folded


def distance(words: Words, predicted: Words) -> NDArray[np.uint64]:
    """Return how many F32 numbers lie between each word and its prediction."""
    return _zigzag(words, predicted, "F32").astype(np.uint64) >> np.uint64(1)


def _unzigzag(folded: Words, predicted: Words, kind: str) -> Words:
    one = folded.dtype.type(1)
    difference = (folded >> one) ^ (~(folded & one) + one)
    return _flip(difference + _flip(predicted, False, kind), True, kind)


def _length(folded: Words) -> NDArray[np.uint8]:
    """Return the number of significant bits of each word (0 for 0)."""
    exponent = (folded.astype(np.float64).view(np.uint64) >> np.uint64(52)).astype(np.int16)
    return np.maximum(exponent - 1022, 0).astype(np.uint8)


def _exponent(predicted: Words, kind: str) -> NDArray[np.uint8]:
    if kind not in EXPONENT:
        return np.zeros(predicted.size, np.uint8)
    shift, mask = EXPONENT[kind]
    return _common(((predicted >> shift) & mask).astype(np.uint8))


def _raw_bytes(length: int) -> int:
    """Return how many low bytes of a word with `length` significant bits are stored as they are."""
    return max(0, (length - 2) // 8)


def _encode_delta(words: Words, predicted: Words, kind: str) -> list[bytes]:
    folded = _zigzag(words, predicted, kind)
    length = _length(folded)
    parts = coder.encode_given(length, _exponent(predicted, kind))
    raw = []
    for bits, chosen in _by_length(length):
        values = folded[chosen].astype(np.uint32)
        low = _raw_bytes(bits)
        parts.append(coder.encode(((values >> (8 * low)) & ((1 << (bits - 1 - 8 * low)) - 1)).astype(np.uint8)))
        raw += [(values >> (8 * k)).astype(np.uint8).tobytes() for k in range(low)]
    return [*parts, b"".join(raw)]


def _decode_delta(parts: list[bytes], predicted: Words, kind: str) -> Words:
    length = coder.decode_given(parts, _exponent(predicted, kind))
    if length.size and int(length.max()) > 8 * predicted.itemsize:
        raise ArtifactError("an exact block holds a number wider than its dtype")
    folded = np.zeros(predicted.size, np.uint32)
    folded[length == 1] = 1
    raw = np.frombuffer(parts[-1] if parts else b"", np.uint8)
    at = 0
    for bits, chosen in _by_length(length):
        low = _raw_bytes(bits)
        values = coder.decode(coder.take(parts), chosen.size).astype(np.uint32) << (8 * low)
        if raw.size < at + low * chosen.size:
            raise ArtifactError("an exact block is cut short")
        for k in range(low):
            values |= raw[at : at + chosen.size].astype(np.uint32) << (8 * k)
            at += chosen.size
        folded[chosen] = values | np.uint32(1 << (bits - 1))
    return _unzigzag(folded.astype(predicted.dtype), predicted, kind)


def _by_length(length: NDArray[np.uint8]) -> list[tuple[int, NDArray[np.intp]]]:
    """Return (bit length, positions) for each length above 1: shorter ones are known from the length alone."""
    order = np.argsort(length, kind="stable")
    edges = np.searchsorted(length[order], np.arange(34))
    return [(k, order[edges[k] : edges[k + 1]]) for k in range(2, 33) if edges[k] < edges[k + 1]]


def _delta_is_smaller(words: Words, predicted: Words, kind: str) -> bool:
    start = max(0, (words.size - _SAMPLE) // 2)
    piece, guess = words[start : start + _SAMPLE], predicted[start : start + _SAMPLE]
    length = _length(_zigzag(piece, guess, kind))
    delta = coder.entropy_bytes(np.bincount(length)) + float(np.maximum(length.astype(np.int64) - 1, 0).sum()) / 8
    planes = _planes(_rotate(piece, kind))
    return delta <= sum(coder.entropy_bytes(np.bincount(plane)) for plane in planes)
