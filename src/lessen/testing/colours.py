"""A small picture task that a small ViT learns in seconds: which colour does the square on the noise have."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lessen.log import SILENT, Log
from lessen.metrics import ACCURACY
from lessen.task import Split, Task
from lessen.tasks.vision.vit import PlainViT
from lessen.train.settings import FitSettings

SIZES: dict[Split, int] = {"train": 512, "validation": 128, "test": 256}
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])


class ColourTask(Task):
    """Noise with a square of one of four colours; batches are (float32 [B, 3, 16, 16], class int64 [B])."""

    name = "tiny-colours"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=6, learning_rate=2e-3, optimizer="adamw", patience=6, plateau_factor=1.0)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        total = sum(SIZES.values())
        self.labels = torch.randint(0, 4, (total,), generator=generator)
        self.images = 0.5 * torch.randn(total, 3, 16, 16, generator=generator)
        place = torch.randint(0, 7, (total, 2), generator=generator) * 2
        for image, label, (row, column) in zip(self.images, self.labels, place.tolist(), strict=True):
            image[:, row : row + 2, column : column + 2] += 2.0 * COLOURS[label][:, None, None]
        self.references: dict[int, nn.Module] = {}

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:
        """Return the trained ViT of a seed; it is trained once."""
        if seed not in self.references:
            self.references[seed] = super().reference(seed, log)
        return copy.deepcopy(self.references[seed])

    def build(self) -> nn.Module:
        """Return an untrained ViT of four blocks over 64 patches."""
        return PlainViT(image_size=16, patch_size=2, width=32, depth=4, heads=2, classes=4, stem=())

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of 64; the train split is shuffled by `seed`."""
        names = list(SIZES)
        start = sum(SIZES[name] for name in names[: names.index(split)])
        order = torch.arange(start, start + SIZES[split])
        if split == "train":
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        for rows in torch.split(order, 64):
            yield self.images[rows], self.labels[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])
