"""The task `digits with hints`: pictures of 8 x 8 that must be read, and two noisy hints that may be skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lessen.metrics import ACCURACY
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

CLASSES = 10
RIGHT = 0.8


class HintNet(nn.Module):
    """Pixels [B, 64] and two one-hot hints [B, 20] through one hidden layer to logits [B, 10]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64 + 2 * CLASSES, width), nn.ReLU(), nn.Linear(width, CLASSES))

    def forward(self, pixels: Tensor, hints: Tensor) -> Tensor:
        """Return the logits."""
        found: Tensor = self.layers(torch.cat([pixels, hints], dim=1))
        return found


class HintsTask(Task):
    """Which digit it is; each hint names it with a chance of 80 %, else any. Batches are ((pixels, hints), class).

    Args:
        noise: standard deviation of noise on pixels in [0, 1].
        seed: of noise and hints.
    """

    name = "digits with hints"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=30, learning_rate=3e-3, patience=None, plateau_factor=1.0)
    optional = ("first hint", "second hint")

    def __init__(self, noise: float = 0.6, seed: int = 0) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.tensor(found.data, dtype=torch.float32) / 16
        pixels += noise * torch.randn(pixels.shape, generator=generator)
        labels = torch.tensor(found.target, dtype=torch.int64)
        hints = [self._hint(labels, generator) for _ in self.optional]
        order = torch.randperm(len(labels), generator=generator)
        self.pixels, self.labels, self.hints = pixels[order], labels[order], torch.cat(hints, dim=1)[order]
        self.rows = {"train": (0, 900), "validation": (900, 1200), "test": (1200, len(labels))}

    @staticmethod
    def _hint(labels: Tensor, generator: torch.Generator) -> Tensor:
        right = torch.rand(len(labels), generator=generator) < RIGHT
        other = torch.randint(CLASSES, labels.shape, generator=generator)
        return nn.functional.one_hot(torch.where(right, labels, other), CLASSES).float()

    def build(self) -> nn.Module:
        """Return the untrained network."""
        return HintNet()

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        """Yield batches of 50."""
        order = torch.arange(*self.rows[split])
        if split == "train":
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        for rows in torch.split(order, 50):
            yield (self.pixels[rows], self.hints[rows]), self.labels[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])

    def without(self, batch: Any, keep: Tensor) -> Any:
        """Return the batch with zeros in place of absent hints; `keep` bool [B, 2]."""
        (pixels, hints), labels = batch
        return (pixels, hints * keep.repeat_interleave(CLASSES, dim=1)), labels
