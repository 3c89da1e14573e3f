"""Which features of a wavelet bank tell classes apart: an ANOVA filter by channel, a global cut, then mRMR."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lessen.errors import DataError
from lessen.series.selection import anova_f, mrmr, top
from lessen.stored.series.wavelet_bank import PER_CHANNEL, WaveletBank

BATCH_CELLS = 1 << 22
"""Values of features that are made at once."""


def choose(
    bank: WaveletBank,
    series: Tensor,
    codes: NDArray[np.int64],
    *,
    features: int,
    before: int,
    samples: int,
    shards: int = 1,
    seed: int = 0,
) -> WaveletBank:
    """Return the bank of the chosen features; its channels are scaled as `bank`'s are.

    Args:
        series: float32 [n, channels, length].
        codes: class of each series, from 0.
        features: how many are kept at most.
        before: how many the redundancy-aware selection chooses from.
        samples: how many series are looked at, drawn by `seed`.
        shards: groups of channels filtered apart, as nodes would; the result is the same for any number.

    Raises:
        DataError: no feature varies between the series.
    """
    part = np.arange(len(series))
    if len(part) > samples:
        part = np.sort(np.random.default_rng(seed).permutation(part)[:samples])
    x, y = series[torch.from_numpy(part)], codes[part]
    names, scores, columns = [], [], []
    channels = np.asarray(bank.used_channels)
    for shard in np.array_split(channels, min(shards, len(channels))):
        kept = [_filtered(bank, x, y, int(channel), before) for channel in shard]
        name, score, column = (np.concatenate(items, axis=-1) for items in zip(*kept, strict=True))
        best = top(score, before)
        names.append(name[best])
        scores.append(score[best])
        columns.append(column[:, best])
    name, score = np.concatenate(names), np.concatenate(scores)
    if not len(name):
        raise DataError("no feature varies between the training series; are they all alike?")
    # by score, then by place in the bank, so that the number of shards cannot matter
    best = np.lexsort((_places(bank)[name], -score))[:before]
    chosen = mrmr(np.concatenate(columns, axis=1)[:, best], score[best], features)
    return bank.part(torch.from_numpy(name[best][chosen]))


def features_of(bank: WaveletBank, series: Tensor) -> Tensor:
    """Return all features [n, features] of series [n, channels, length], a few series at a time."""
    step = max(1, BATCH_CELLS // bank.features)
    return torch.cat([bank(part) for part in torch.split(series, step)])


def _filtered(
    bank: WaveletBank, series: Tensor, codes: NDArray[np.int64], channel: int, before: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """Return (numbers in the bank, F values, columns) of the best features of one channel."""
    own = torch.nonzero(bank.feature_rows()[:, 0] == channel)[:, 0]
    values = features_of(bank.part(own), series).numpy()
    score = anova_f(values, codes)
    best = np.sort(top(score, before))
    return own.numpy()[best], score[best], values[:, best]


def _places(bank: WaveletBank) -> NDArray[np.int64]:
    """Return the place of each feature in the whole bank, ordered by channel first."""
    channel, dilation, kernel, bit = bank.feature_rows().numpy().T
    return np.asarray(channel * PER_CHANNEL + (dilation * 84 + kernel) * 8 + bit)
