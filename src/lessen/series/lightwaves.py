"""LightWaveS as an estimator: series and labels in, classes out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lessen.errors import ArtifactError, ConfigError, DataError
from lessen.files import atomic_write, read_checked
from lessen.series.choosing import choose, features_of
from lessen.series.ridge import fit_ridge
from lessen.stored.series.wavelet_bank import WaveletBank

Singles = NDArray[np.float32]
_FORMAT = "lessen-lightwaves-1"


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
    separating features are kept instead of thrown away, that flat stretches count as neither above nor below zero, and
    in columns standardised for the head.
    """

    def __init__(self, settings: LightWavesSettings | None = None) -> None:
        self.settings = settings or LightWavesSettings()
        self.classes: list[Any] = []
        self.bank: WaveletBank | None = None

    def fit(self, series: NDArray[Any], labels: NDArray[Any]) -> LightWaves:
        """Choose features and fit the head. Raises DataError: shapes, NaN, fewer than two classes, nothing varies."""
        x = torch.from_numpy(self._checked(series))
        classes, codes = np.unique(labels, return_inverse=True)
        if len(codes) != len(x) or len(classes) < 2:
            raise DataError(
                f"{len(x)} series need as many labels of two classes or more, "
                f"found {len(codes)} labels of {len(classes)}"
            )
        whole = WaveletBank.full(x.shape[1], x.shape[2])
        whole.scale_by(x)
        sizes = {name: getattr(self.settings, name) for name in ("features", "before", "samples", "shards", "seed")}
        self.bank = choose(whole, x, codes.astype(np.int64), **sizes)
        self.classes = classes.tolist()
        features = features_of(self.bank, x).double().numpy()
        weights, bias, self.penalty = fit_ridge(features, codes, len(classes))
        self.weights, self.bias = weights.astype(np.float32), bias.astype(np.float32)
        return self

    def transform(self, series: NDArray[Any]) -> Singles:
        """Return the kept features [n, features]; only kept channels are read, level 2 only where it is kept."""
        x, bank = self._checked(series), self._fitted()
        if x.shape[1:] != (bank.channels, bank.length):
            raise DataError(f"series must be [n, {bank.channels}, {bank.length}] as in fit, found {x.shape}")
        return np.asarray(features_of(bank, torch.from_numpy(x)).numpy())

    def decision(self, series: NDArray[Any]) -> Singles:
        """Return the head's value of each class [n, classes]."""
        return np.asarray(self.transform(series) @ self.weights + self.bias)

    def predict(self, series: NDArray[Any]) -> NDArray[Any]:
        """Return the class of each series."""
        best = self.decision(series).argmax(axis=1)
        return np.asarray(np.asarray(self.classes)[best])

    @property
    def rows(self) -> NDArray[np.int64]:
        """One row a kept kernel: channel, dilation index, kernel, bits of kept features; ordered."""
        return np.asarray(self._fitted().rows.numpy())

    @property
    def used_channels(self) -> list[int]:
        """Channels that have to be measured at all."""
        return self._fitted().used_channels

    def _fitted(self) -> WaveletBank:
        if self.bank is None:
            raise DataError("this LightWaves is not fitted: call fit first")
        return self.bank

    def _checked(self, series: NDArray[Any]) -> Singles:
        x = np.ascontiguousarray(series, dtype=np.float32)
        if x.ndim != 3 or 0 in x.shape:
            raise DataError(f"series must be a full array [n, channels, length], found shape {x.shape}")
        if not np.isfinite(x).all():
            raise DataError("series hold NaN or infinity; fill gaps first (series must have equal length)")
        return x

    # -- storage ----------------------------------------------------------------------------------------------
    def save(self, path: Path) -> None:
        """Write one safetensors file: 5 bytes a kernel, the scaling of used channels, the head."""
        from safetensors.numpy import save

        bank = self._fitted()
        tensors = {name: getattr(bank, name).numpy() for name in ("dilation", "kernel", "bits", "mean", "spread")}
        tensors |= {"channel": bank.channel.numpy().astype(np.uint16), "weights": self.weights, "bias": self.bias}
        about = {"format": _FORMAT, "channels": bank.channels, "length": bank.length, "classes": self.classes}
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
            made.classes = about["classes"]
            made._restore(tensors, about["channels"], about["length"])
        except Exception as error:  # whatever a damaged file makes the parsers raise
            raise ArtifactError(f"{path} is not a LightWaves model or is damaged: {error}") from error
        return made

    def _restore(self, tensors: dict[str, Any], channels: int, length: int) -> None:
        names = ("channel", "dilation", "kernel", "bits")
        rows = torch.from_numpy(np.stack([tensors[name].astype(np.int64) for name in names], axis=1))
        bank = WaveletBank.of(rows, channels, length)
        if tensors["weights"].shape != (bank.features, len(self.classes)):
            raise ValueError("the head does not fit the features")
        for name in ("mean", "spread"):
            if tensors[name].shape != (bank.used,):
                raise ValueError(f"{name} is not that of the channels read")
            getattr(bank, name).copy_(torch.from_numpy(tensors[name]))
        if tensors["bias"].shape != (len(self.classes),):
            raise ValueError("the head does not fit the classes")
        self.bank, self.weights, self.bias = bank, tensors["weights"], tensors["bias"]
