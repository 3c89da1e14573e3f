"""The wavelet-like feature bank of LightWaveS: 84 kernels, 6 dilations, 2 levels, 4 features each.

    x [n, T] -> u = |d|^-1.5 * (kernel at dilation d) * x -> 4 features
                 `-> |u| at every second step -> the same kernel again -> 4 features

A kernel has three taps of 2 and six of -1, so u = 3 * (sum of its three taps) - (sum of all nine): nine shifted copies
of a channel serve all its kernels. Source: arXiv 2204.01379; kernels of MiniRocket, arXiv 2012.08791.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Singles = NDArray[np.float32]
TAPS = np.asarray(list(itertools.combinations(range(9), 3)), dtype=np.int64)
"""Positions of the three taps of weight 2, shape [84, 3]."""
DILATIONS = (1, 2, 4, 8, 16, 32)
FEATURES = 8
"""Per kernel: at each level the share of u > 0, max |u|, longest run of u > 0 over the length, min |u|."""


def responses(series: Singles, kernels: NDArray[np.int64], dilation: int, row: NDArray[np.int64]) -> Singles:
    """Return u for kernels [k] on `series` [n, rows, T]: [n, k, T], zeros beyond the ends.

    Kernel j reads row `row[j]`.
    """
    reach = 4 * dilation
    length = series.shape[-1]
    padded = np.zeros((*series.shape[:2], length + 2 * reach), dtype=np.float32)
    padded[..., reach : reach + length] = series
    shifted = np.stack([padded[..., j * dilation : j * dilation + length] for j in range(9)], axis=2)
    everything = shifted.sum(axis=2)
    taps = TAPS[kernels]
    three = shifted[:, row, taps[:, 0]] + shifted[:, row, taps[:, 1]] + shifted[:, row, taps[:, 2]]
    return np.asarray((3.0 * three - everything[:, row]) * np.float32(dilation**-1.5), dtype=np.float32)


def pooled(u: Singles) -> Singles:
    """Return the four features of u [n, k, T]: [n, k, 4]; a run that reaches the last sample counts."""
    positive, size = u > 0, np.abs(u)
    steps = np.arange(1, u.shape[-1] + 1, dtype=np.int32)
    last = np.maximum.accumulate(np.where(positive, 0, steps), axis=-1)
    run = (steps - last).max(axis=-1) / u.shape[-1]
    return np.stack([positive.mean(axis=-1), size.max(axis=-1), run, size.min(axis=-1)], axis=-1).astype(np.float32)


def kernel_features(
    series: Singles, kernels: NDArray[np.int64], dilation: int, second: NDArray[np.bool_], row: NDArray[np.int64]
) -> Singles:
    """Return [n, k, 8] of kernels [k] on rows `row` [k] of `series` [n, rows, T]; level 2 only where `second` [k]."""
    u = responses(series, kernels, dilation, row)
    result = np.zeros((len(series), len(kernels), FEATURES), dtype=np.float32)
    result[..., :4] = pooled(u)
    if second.any():
        half = np.abs(u[:, second, ::2])
        result[:, second, 4:] = pooled(responses(half, kernels[second], dilation, np.arange(half.shape[1])))
    return result


def channel_bank(channel: Singles) -> Singles:
    """Return all features of one channel [n, T]: [n, 84 * 6 * 8], ordered by dilation, kernel, feature."""
    every, both = np.arange(len(TAPS)), np.ones(len(TAPS), dtype=bool)
    row = np.zeros(len(TAPS), dtype=np.int64)
    parts = [kernel_features(channel[:, None], every, dilation, both, row) for dilation in DILATIONS]
    return np.concatenate([part.reshape(len(channel), -1) for part in parts], axis=1)
