"""A task of classifying time series, and its reference: every feature of a wavelet bank and a ridge head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.log import SILENT, Log
from lessen.metrics import ACCURACY
from lessen.series.choosing import features_of
from lessen.series.ridge import ridge_head
from lessen.stored.series.wavelet_bank import WaveletBank
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

BATCH = 64


class Series(NamedTuple):
    """Series float32 [n, channels, length] and their classes int64 [n]."""

    values: Tensor
    classes: Tensor


class BankClassifier(nn.Module):
    """Series [n, channels, length] -> wavelet bank -> linear head -> scores [n, classes]."""

    def __init__(self, channels: int, length: int, classes: int) -> None:
        super().__init__()
        self.bank = WaveletBank.full(channels, length)
        self.head = nn.Linear(self.bank.features, classes)

    def forward(self, series: Tensor) -> Tensor:
        """Return one score a class."""
        scores: Tensor = self.head(self.bank(series))
        return scores


class SeriesTask(Task):
    """Which class a series belongs to; a subclass gives the splits.

    The reference takes all 4,032 features of each channel and a ridge head, fitted in closed form on the train split:
    what features are chosen from, as ROCKET and its kin use it. Methods that train go on from there by cross-entropy.
    """

    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=5, learning_rate=1e-4, optimizer="adam", patience=2)

    def split(self, name: Split) -> Series:
        """Return one split. Raises TaskError for a name that is none."""
        raise NotImplementedError(f"{type(self).__name__}.split")

    @property
    def classes(self) -> int:
        """How many classes there are."""
        raise NotImplementedError(f"{type(self).__name__}.classes")

    def build(self) -> nn.Module:
        """Return the classifier on the whole bank, its head untrained."""
        values = self.split("train").values
        return BankClassifier(values.shape[1], values.shape[2], self.classes)

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - nothing is drawn or said
        """Return the classifier on the whole bank with its ridge head, in eval mode."""
        train = self.split("train")
        with torch.random.fork_rng(devices=[]):
            model = self.build()
        if not isinstance(model, BankClassifier):
            raise TaskError(f"task {self.name!r} builds a {type(model).__name__}; override reference as well")
        model.bank.scale_by(train.values)
        model.head, _ = ridge_head(features_of(model.bank, train.values), train.classes.numpy(), self.classes)
        return model.eval()

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (series [b, channels, length], classes [b]); the train split is shuffled by `seed`."""
        rows = self.split(split)
        order = torch.arange(len(rows.classes))
        if split == "train":
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        for part in torch.split(order, BATCH):
            yield rows.values[part], rows.classes[part]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross-entropy of a batch."""
        return F.cross_entropy(self.forward(model, batch), self.target(batch))
