"""Small networks of three families for grey pictures of 16 x 16."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from lessen.tasks.vision.vit import PlainViT


class Grey(nn.Module):
    """A ViT for coloured pictures that is given grey ones, [B, 1, 16, 16]."""

    def __init__(self, width: int = 32, depth: int = 4, classes: int = 4) -> None:
        super().__init__()
        self.inner = PlainViT(image_size=16, patch_size=4, width=width, depth=depth, heads=2, classes=classes, stem=())

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        logits: Tensor = self.inner(pictures.expand(-1, 3, -1, -1))
        return logits


class MixerBlock(nn.Module):
    """A mix across tokens, then one along channels, each around a residual."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.along = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, N, C] to the same."""
        tokens = tokens + self.across(self.before(tokens).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = tokens + self.along(self.between(tokens))
        return mixed


class Mixer(nn.Module):
    """An MLP-Mixer over patches of 4 x 4 pixels, `tokens` of them; pictures are [B, channels, side, side]."""

    def __init__(self, width: int = 16, depth: int = 3, classes: int = 4, channels: int = 1, tokens: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, stride=4)
        self.blocks = nn.Sequential(*(MixerBlock(tokens, width) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        logits: Tensor = self.head(self.blocks(self.patches(pictures).flatten(2).transpose(1, 2)).mean(dim=1))
        return logits


class SmallCnn(nn.Module):
    """Convolutions with batch norm, all but the first of stride 2, a mean and a linear layer.

    Pictures are [B, channels, side, side], of 8 pixels and more.
    """

    def __init__(self, width: int = 8, classes: int = 4, channels: int = 1, stages: int = 3) -> None:
        super().__init__()
        sizes = (channels, *(width * min(2**stage, 2 ** (stages - 2)) for stage in range(stages)))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=1 + (n > 0), padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for n, (a, b) in enumerate(itertools.pairwise(sizes))
        )
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        for stage in self.stages:
            pictures = stage(pictures)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(pictures, 1).flatten(1))
        return logits
