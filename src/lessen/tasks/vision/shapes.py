"""The task `shapes`: drawn shapes in small pictures, in one of two styles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.log import SILENT, Log
from lessen.metrics import ACCURACY
from lessen.task import Split, Task, TaskOptions
from lessen.train.settings import FitSettings

SIDE = 16
KINDS = ("disc", "square", "cross", "ring")
Style = Literal["filled", "faded"]


class ShapesOptions(TaskOptions):
    """What a study may set under `task:`."""

    style: Style = Field("filled", description="filled: bright on dark; faded: six tenths of the contrast")
    pretrained: Style | None = Field(None, description="train the reference on this style in place of `style`")
    examples: int = Field(1600, ge=40, le=10**7, description="train examples; test and validation: half as many")
    seed: int = Field(0, ge=0, le=2**31, description="of the pictures")


class ShapesNet(nn.Module):
    """Two strided convolutions and two linear layers: float32 [B, 1, 16, 16] to logits [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.hidden = nn.Linear(256, 64)
        self.head = nn.Linear(64, len(KINDS))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits of the four shapes."""
        features = torch.relu(self.deep(torch.relu(self.wide(pictures))))
        logits: Tensor = self.head(torch.relu(self.hidden(features.flatten(1))))
        return logits


class ShapesTask(Task):
    """Which of four shapes is in a grey picture; batches are (float32 [B, 1, 16, 16], class int64 [B]).

    The reference is, with `pretrained`, a model of another style that has not seen this one: what adapters start from.
    """

    name = "shapes"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=12, learning_rate=3e-3, patience=3)
    Options = ShapesOptions

    def __init__(self, options: ShapesOptions | None = None) -> None:
        self.options = options or ShapesOptions()
        self._splits: dict[Split, tuple[Tensor, Tensor]] = {}

    def build(self) -> nn.Module:
        """Return a small convolutional network with two linear layers."""
        return ShapesNet()

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:
        """Return the trained network; with `pretrained`, one that was trained on that style."""
        if self.options.pretrained is None:
            return super().reference(seed, log)
        options = self.options.model_copy(update={"style": self.options.pretrained, "pretrained": None})
        return ShapesTask(options).reference(seed, log)

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of 64; the train split is shuffled by `seed`."""
        if split not in self._splits:
            number = ("test", "validation", "train").index(split)
            count = self.options.examples if split == "train" else self.options.examples // 2
            self._splits[split] = shapes(count, self.options.style, 3 * self.options.seed + number)
        pictures, kinds = self._splits[split]
        order = torch.arange(len(kinds))
        if split == "train":
            order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))
        for chosen in torch.split(order, 64):
            yield pictures[chosen], kinds[chosen]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}


def shapes(count: int, style: Style, seed: int) -> tuple[Tensor, Tensor]:
    """Return pictures float32 [count, 1, 16, 16] and the number of the shape in each, int64 [count]."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(len(KINDS), (count,), generator=generator)
    centre = torch.rand(count, 2, 1, 1, generator=generator) * 6 + 5
    size = torch.rand(count, 1, 1, generator=generator) * 2 + 2.5
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    across, down = x - centre[:, 0], y - centre[:, 1]
    radius, reach = torch.sqrt(across**2 + down**2), torch.maximum(across.abs(), down.abs())
    inside = [
        size - radius,
        size * math.sqrt(math.pi) / 2 - reach,
        torch.minimum(size * 0.35 - torch.minimum(across.abs(), down.abs()), size - reach),
        0.8 - (radius - size).abs(),
    ]
    drawn = torch.stack(inside, dim=1)[torch.arange(count), kinds].mul(2).sigmoid()
    noise = torch.randn(drawn.shape, generator=generator)
    pictures = drawn + 0.15 * noise if style == "filled" else 0.6 * drawn + 0.15 * noise
    return pictures[:, None], kinds
