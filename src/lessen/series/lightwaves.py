"""LightWaveS: classify multivariate series by some hundred features of a wavelet-like bank, on few channels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessen.errors import ArtifactError, ConfigError, DataError
from lessen.files import atomic_write, read_checked
from lessen.series.bank import DILATIONS, FEATURES, TAPS, Singles, channel_bank, kernel_features
from lessen.series.ridge import fit_ridge
from lessen.series.selection import anova_f, mrmr, top

_PER_CHANNEL = len(TAPS) * len(DILATIONS) * FEATURES
_FORMAT = "lessen-lightwaves-1"
_BATCH_CELLS = 1 << 24


@dataclass(frozen=True)
class LightWavesSettings:
    """Sizes; the defaults are the paper's."""

    features: int = 500
    """Features kept in the end."""
    before: int = 1500
    """Features that the redundancy-aware selection chooses from."""
    samples: int = 1500
    """Training series that the selection looks at."""
    shards: int = 1
    """Groups of channels filtered apart, as nodes would; the result is the same for any number."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.features < 1 or self.before < self.features or self.samples < 4 or self.shards < 1:
            raise ConfigError("lightwaves: features >= 1, before >= features, samples >= 4 and shards >= 1 are needed")


class LightWaves:
    """Fit on series [n, channels, length] and labels; predict on series of the same shape.

    Selection is an ANOVA filter per shard of channels, a global cut, and mRMR; the head is ridge regression. All of it
    sees training labels, so fit inside each fold of a cross-validation. Series must have equal length: padding with
    zeros would make features of its own. Dilations whose outer taps never see a short series are kept, as published.

    Source: arXiv 2204.01379 (variant L1L2). Differs in that runs reaching the last sample count, that perfectly
    separating features are kept instead of thrown away, and in columns standardised for the head.
    """

    def __init__(self, settings: LightWavesSettings | None = None) -> None:
        self.settings = settings or LightWavesSettings()
        self.classes: list[Any] = []
        self.length = self.channels = 0
        self.rows: NDArray[np.int64] = np.zeros((0, 4), dtype=np.int64)
        """One row a kept kernel: channel, dilation index, kernel, bits of kept features; ordered."""

    # -- fitting ----------------------------------------------------------------------------------------------
    def fit(self, series: NDArray[Any], labels: NDArray[Any]) -> LightWaves:
        """Choose features and fit the head. Raises DataError: shapes, NaN, fewer than two classes, nothing varies."""
        x = self._checked(series)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(codes) != len(x) or len(classes) < 2:
            raise DataError(f"{len(x)} series need as many labels of two classes or more, found {len(codes)} labels of "
                            f"{len(classes)}")  # fmt: skip
        self.classes, self.channels, self.length = classes.tolist(), x.shape[1], x.shape[2]
        self.mean = x.mean(axis=(0, 2), dtype=np.float64).astype(np.float32)
        self.spread = (x.std(axis=(0, 2), dtype=np.float64) + 1e-8).astype(np.float32)
        scaled = self._scaled(x, np.arange(self.channels))
        chosen = self._choose(scaled, codes.astype(np.int64))
        if not len(chosen):
            raise DataError("no feature varies between the training series; are they all alike?")
        self._keep(chosen)
        weights, bias, self.penalty = fit_ridge(self.transform(x).astype(np.float64), codes, len(classes))
        self.weights, self.bias = weights.astype(np.float32), bias.astype(np.float32)
        return self

    def _choose(self, scaled: Singles, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return kept features as numbers in the whole bank."""
        part = np.arange(len(scaled))
        if len(part) > self.settings.samples:
            part = np.sort(np.random.default_rng(self.settings.seed).permutation(part)[: self.settings.samples])
        names, scores, columns = list[Any](), list[Any](), list[Any]()
        for shard in np.array_split(np.arange(self.channels), min(self.settings.shards, self.channels)):
            kept = [self._filtered(scaled[part, channel], codes[part], int(channel)) for channel in shard]
            name, score, column = (np.concatenate(items, axis=-1) for items in zip(*kept, strict=True))
            best = top(score, self.settings.before)
            names.append(name[best])
            scores.append(score[best])
            columns.append(column[:, best])
        name, score = np.concatenate(names), np.concatenate(scores)
        # by score, then by place in the bank, so that the number of shards cannot matter
        best = np.lexsort((name, -score))[: self.settings.before]
        values = np.concatenate(columns, axis=1)[:, best]
        chosen = mrmr(values, score[best], self.settings.features)
        return np.asarray(name[best][chosen], dtype=np.int64)

    def _filtered(self, channel: Singles, codes: NDArray[np.int64], number: int) -> tuple[Any, Any, Any]:
        """Return (numbers, F values, columns) of the best features of one channel."""
        step = max(1, _BATCH_CELLS // (len(TAPS) * 9 * self.length))
        bank = np.concatenate([channel_bank(channel[start : start + step]) for start in range(0, len(channel), step)])
        score = anova_f(bank, codes)
        best = np.sort(top(score, self.settings.before))
        return number * _PER_CHANNEL + best, score[best], bank[:, best]

    def _keep(self, chosen: NDArray[np.int64]) -> None:
        kernel, bit = np.divmod(chosen, FEATURES)
        unique = np.unique(kernel)
        bits = np.zeros(len(unique), dtype=np.int64)
        np.bitwise_or.at(bits, np.searchsorted(unique, kernel), 1 << bit)
        channel, rest = np.divmod(unique, len(TAPS) * len(DILATIONS))
        dilation, tap = np.divmod(rest, len(TAPS))
        order = np.lexsort((tap, channel, dilation))
        self.rows = np.stack([channel, dilation, tap, bits], axis=1)[order]

    # -- use --------------------------------------------------------------------------------------------------
    def transform(self, series: NDArray[Any]) -> Singles:
        """Return the kept features [n, features]; only kept channels are read, level 2 only where it is kept."""
        x = self._checked(series)
        if x.shape[1:] != (self.channels, self.length):
            raise DataError(f"series must be [n, {self.channels}, {self.length}] as in fit, found {x.shape}")
        used, place = np.unique(self.rows[:, 0], return_inverse=True)
        scaled = self._scaled(x, used)
        parts = []
        for number, dilation in enumerate(DILATIONS):
            own = self.rows[:, 1] == number
            if own.any():
                kept = (self.rows[own, 3, None] >> np.arange(FEATURES)) & 1 == 1
                second = kept[:, 4:].any(axis=1)
                parts.append(kernel_features(scaled, self.rows[own, 2], dilation, second, place[own])[:, kept])
        return np.concatenate(parts, axis=1)

    def decision(self, series: NDArray[Any]) -> Singles:
        """Return the head's value of each class [n, classes]."""
        return np.asarray(self.transform(series) @ self.weights + self.bias)

    def predict(self, series: NDArray[Any]) -> NDArray[Any]:
        """Return the class of each series."""
        best = self.decision(series).argmax(axis=1)
        return np.asarray(np.asarray(self.classes)[best])

    @property
    def used_channels(self) -> list[int]:
        """Channels that have to be measured at all."""
        return [int(channel) for channel in np.unique(self.rows[:, 0])]

    def _scaled(self, x: Singles, channels: NDArray[np.int64]) -> Singles:
        return np.asarray((x[:, channels] - self.mean[channels, None]) / self.spread[channels, None])

    def _checked(self, series: NDArray[Any]) -> Singles:
        x = np.asarray(series, dtype=np.float32)
        if x.ndim != 3 or 0 in x.shape:
            raise DataError(f"series must be a full array [n, channels, length], found shape {x.shape}")
        if not np.isfinite(x).all():
            raise DataError("series hold NaN or infinity; fill gaps first (series must have equal length)")
        return x

    # -- storage ----------------------------------------------------------------------------------------------
    def save(self, path: Path) -> None:
        """Write one safetensors file: 5 bytes a kernel, the scaling of used channels, the head."""
        from safetensors.numpy import save

        used = self.used_channels
        tensors = {
            "channel": self.rows[:, 0].astype(np.uint16), "dilation": self.rows[:, 1].astype(np.uint8),
            "kernel": self.rows[:, 2].astype(np.uint8), "bits": self.rows[:, 3].astype(np.uint8),
            "mean": self.mean[used], "spread": self.spread[used], "weights": self.weights, "bias": self.bias,
        }  # fmt: skip
        about = {"format": _FORMAT, "channels": self.channels, "length": self.length, "classes": self.classes}
        atomic_write(path, save(tensors, {"lessen": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path) -> LightWaves:
        """Read what `save` wrote. Raises ArtifactError."""
        from safetensors.numpy import load

        raw = read_checked(path, limit=1 << 30)
        try:
            header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
            about, tensors = json.loads(header["__metadata__"]["lessen"]), load(raw)
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']!r}")
            made = cls()
            made.classes, made.channels, made.length = about["classes"], int(about["channels"]), int(about["length"])
            names = ("channel", "dilation", "kernel", "bits")
            made.rows = np.stack([tensors[name].astype(np.int64) for name in names], axis=1)
            made._restore(tensors)
        except Exception as error:  # whatever a damaged file makes the parsers raise
            raise ArtifactError(f"{path} is not a LightWaves model or is damaged: {error}") from error
        return made

    def _restore(self, tensors: dict[str, Any]) -> None:
        bits = int(sum(bin(value).count("1") for value in self.rows[:, 3].tolist()))
        channel, dilation, kernel = self.rows[:, 0].max(), self.rows[:, 1].max(), self.rows[:, 2].max()
        if channel >= self.channels or dilation >= len(DILATIONS) or kernel >= len(TAPS):
            raise ValueError("a kernel lies outside the bank")
        if tensors["weights"].shape != (bits, len(self.classes)) or tensors["bias"].shape != (len(self.classes),):
            raise ValueError("the head does not fit the features")
        self.mean, self.spread = np.zeros(self.channels, np.float32), np.ones(self.channels, np.float32)
        self.mean[self.used_channels], self.spread[self.used_channels] = tensors["mean"], tensors["spread"]
        self.weights, self.bias = tensors["weights"], tensors["bias"]
