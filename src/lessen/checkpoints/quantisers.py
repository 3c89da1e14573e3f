"""Numbers to few levels and back: uniform cells, k-means centroids, and the bytes of either."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessen.checkpoints import coder
from lessen.errors import ArtifactError

Values = NDArray[np.float32]
Codes = NDArray[np.uint8]

_KEY_LEVELS = 32_000


def cells(x: Values, width: float, dead_zone: float, levels: int) -> tuple[Codes, Values]:
    """Quantise to uniform cells around a dead zone; return codes (0 pruned, odd positive, even negative), codebook.

    Codebook entries are the means of what fell into the cell, float32.
    """
    half = levels // 2
    size = np.abs(x * np.float32(1 / width))
    size += np.float32(1 - dead_zone)
    level = np.minimum(size, np.float32(half), out=size).astype(np.uint8)
    outside = level > 0
    codes = (level << 1) - (outside & (x > 0)).view(np.uint8)
    found, values = codes[outside], x[outside]
    counts = np.bincount(found, minlength=2)
    book = (np.bincount(found, weights=values, minlength=2) / np.maximum(counts, 1)).astype(np.float32)
    return codes, book


def kmeans(x: Values, kept: NDArray[np.bool_], levels: int, iterations: int = 25) -> tuple[Codes, Values]:
    """Quantise `x[kept]` to at most `levels` centroids by one-dimensional Lloyd iterations on a histogram.

    Returns codes (0 where not kept, else centroid + 1) and the codebook with 0 in front, float32. The
    result is exact for `levels` or fewer distinct values.
    """
    codes = np.zeros(x.shape, np.uint8)
    values = x[kept]
    if values.size == 0:
        return codes, np.zeros(1, np.float32)
    centres, weights = _histogram(values, levels)
    book = _lloyd(centres, weights, levels, iterations) if centres.size > levels else centres
    codes[kept] = np.searchsorted((book[1:] + book[:-1]) / 2, values) + 1
    return codes, np.concatenate([[0], book]).astype(np.float32)


def _histogram(values: Values, levels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    distinct = np.unique(values[:: max(1, values.size // 4096)])
    if distinct.size <= levels:
        distinct = np.unique(values)
    if distinct.size <= levels:
        return distinct.astype(np.float64), np.ones(distinct.size)
    low, high = float(values.min()), float(values.max())
    bins = 4096
    where = ((values - np.float32(low)) * np.float32((bins - 1) / (high - low))).astype(np.uint16)
    counts = np.bincount(where, minlength=bins)
    sums = np.bincount(where, weights=values, minlength=bins)
    used = counts > 0
    return sums[used] / counts[used], counts[used].astype(np.float64)


def _lloyd(
    centres: NDArray[np.float64], weights: NDArray[np.float64], levels: int, iterations: int
) -> NDArray[np.float64]:
    mass = np.concatenate([[0], np.cumsum(weights)])
    moment = np.concatenate([[0], np.cumsum(weights * centres)])
    book: NDArray[np.float64] = np.interp((np.arange(levels) + 0.5) / levels * mass[-1], mass[1:], centres)
    for _ in range(iterations):
        edges = np.concatenate([[0], np.searchsorted(centres, (book[1:] + book[:-1]) / 2), [centres.size]])
        count = np.diff(mass[edges])
        book = np.sort(np.where(count > 0, np.diff(moment[edges]) / np.maximum(count, 1e-300), book))
    return book


def encode_codes(codes: Codes, book: Values) -> bytes:
    """Code quantiser output: mostly zeros go as a bit mask and the levels that are left, others directly."""
    mask = codes != 0
    if 2 * int(np.count_nonzero(mask)) > codes.size:
        return coder.join([b"\0", book.astype("<f4").tobytes(), coder.encode(codes)])
    return coder.join([b"\1", book.astype("<f4").tobytes(), coder.encode_mask(mask), coder.encode(codes[mask])])


def encode_uniform(x: Values, width: float) -> bytes:
    """Code multiples of a width, without a codebook: key frames have thousands of levels."""
    width = max(width, float(np.abs(x).max(initial=0)) / _KEY_LEVELS)
    level = np.rint(x * np.float32(1 / width)).astype(np.int32)
    folded = ((level << 1) ^ (level >> 31)).astype(np.uint16)
    return coder.join([b"\2", struct.pack("<f", width), coder.encode(folded)])


def _decode_uniform(parts: list[bytes], count: int) -> Values:
    if len(parts) != 3 or len(parts[1]) != 4:
        raise ArtifactError("a key block is malformed")
    folded = coder.decode(parts[2], count, np.uint16).astype(np.int32)
    level = (folded >> 1) ^ -(folded & 1)
    values: Values = level.astype(np.float32) * np.frombuffer(parts[1], "<f4")[0]
    return values


def decode_values(blob: bytes, count: int) -> Values:
    """Return the codebook values of `encode_codes`, [count], without ever building the codes. Raises ArtifactError."""
    parts = coder.split(blob)
    if parts and parts[0] == b"\2":
        return _decode_uniform(parts, count)
    if len(parts) not in (3, 4) or len(parts[1]) % 4 or not parts[1]:
        raise ArtifactError("a quantised block is malformed")
    book = np.frombuffer(parts[1], "<f4").astype(np.float32)
    if parts[0] == b"\0":
        return _look_up(book, coder.decode(parts[2], count))
    kept = np.flatnonzero(coder.decode_mask(parts[2], count))
    values = np.full(count, book[0], np.float32)
    values[kept] = _look_up(book, coder.decode(parts[3], kept.size))  # by position: five times as fast as by mask
    return values


def _look_up(book: Values, codes: NDArray[Any]) -> Values:
    if codes.size and int(codes.max()) >= book.size:
        raise ArtifactError("a quantised block uses a level that its codebook lacks")
    values: Values = book[codes]
    return values
