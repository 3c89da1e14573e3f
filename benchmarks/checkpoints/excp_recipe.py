"""ExCP as published (arXiv 2406.11257 and its official script), written from its description: a peer to compare with.

Differences from `lessen.checkpoints.near`, kept on purpose: alpha 5e-5 as given, one threshold per tensor with a cap of
2.5 medians, moments where the weight was pruned are zero, 15 k-means centroids per tensor stored in half precision
(second moments of small models underflow there), codes packed two to a byte, then a general archiver (LZMA, which is
what 7-zip uses).
"""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np

ALPHA, BETA, BITS = 5e-5, 2.0, 4


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack 8 / bits consecutive codes into a byte, the first in the most significant bits; zeros pad the end.

    >>> pack_codes(np.array([1, 15, 0, 7]), 4)
    array([31,  7], dtype=uint8)
    """
    each = 8 // bits
    flat = np.concatenate([codes.reshape(-1), np.zeros(-codes.size % each, codes.dtype)]).reshape(-1, each)
    weights = (2**bits) ** np.arange(each - 1, -1, -1)
    return (flat * weights).sum(1).astype(np.uint8)


def unpack_codes(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Undo `pack_codes`."""
    each = 8 // bits
    weights = (2**bits) ** np.arange(each - 1, -1, -1)
    return (packed[:, None] // weights % 2**bits).reshape(-1)[:count].astype(np.uint8)


def kmeans(values: np.ndarray, clusters: int, iterations: int = 25, seed: int = 0) -> np.ndarray:
    """Lloyd on at most 256 samples a centroid, as faiss does by default."""
    if values.size > 256 * clusters:
        values = np.random.default_rng(seed).choice(values, 256 * clusters, replace=False)
    values = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0], np.cumsum(values)])
    centroids = np.quantile(values, (np.arange(clusters) + 0.5) / clusters)
    for _ in range(iterations):
        edges = np.concatenate([[0], np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2), [values.size]])
        counts = np.diff(edges)
        centroids = np.sort(np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centroids))
    return centroids


def quantise(values: np.ndarray, kept: np.ndarray, bits: int) -> tuple[bytes, np.ndarray]:
    """Return the stored bytes and the rebuilt values."""
    kept = kept & (values != 0)
    clusters = 2**bits - 1
    if int(kept.sum()) <= clusters:
        rebuilt = np.where(kept, values, 0).astype(np.float32)
        return rebuilt.tobytes(), rebuilt
    centroids = kmeans(values[kept], clusters)
    codes = np.zeros(values.shape, np.uint8)
    codes[kept] = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values[kept]) + 1
    stored = centroids.astype(np.float16)
    table = np.concatenate([[0], stored.astype(np.float32)]).astype(np.float32)
    return stored.tobytes() + pack_codes(codes, bits).tobytes(), table[codes]


def compress(
    now: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], before: dict[str, np.ndarray], scaled: bool = False
) -> tuple[bytes, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Compress one checkpoint: weight, exp_avg and exp_avg_sq by parameter name, against the rebuilt weights before.

    With `scaled`, the threshold sits at its cap of 2.5 medians, where the paper's models have it; with the published
    alpha, the gradients of a small model put it near zero.
    """
    parts: list[bytes] = []
    rebuilt: dict[str, Any] = {}
    for name, (weight, first, second) in now.items():
        residual = weight - before[name]
        factor = 2.5 if scaled else min(2.5, ALPHA / float(np.sqrt(second.mean())))
        kept = np.abs(residual) > factor * np.median(np.abs(residual))
        joint = kept & (np.abs(first) > BETA * np.abs(first).mean())
        stored, new = zip(
            *(quantise(x, mask, BITS) for x, mask in [(residual, kept), (first, joint), (second, joint)]), strict=True
        )
        parts += stored
        rebuilt[name] = (before[name] + new[0], new[1], new[2])
    return b"".join(parts), rebuilt


def archive(stored: bytes) -> bytes:
    """Remove the entropy of the codes, as the paper does with 7-zip."""
    return lzma.compress(stored, preset=6)
