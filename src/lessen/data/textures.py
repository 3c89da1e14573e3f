"""Drawn pictures with what codecs find hard: soft gradients, sharp edges, gratings and noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def textures(count: int, side: int, seed: int) -> Tensor:
    """Return pictures, uint8 [count, 3, side, side]: the same for the same seed, each of other parts.

    Each is a gradient in colour, under it one to three half planes of another colour, a grating of random direction and
    frequency, and noise of random strength.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([_one(x, y, generator) for _ in range(count)])


def _one(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    slopes = draw(3, 2, 1, 1) * 0.8 - 0.4
    picture = draw(3, 1, 1) * 0.6 + 0.2 + slopes[:, 0] * x + slopes[:, 1] * y
    for _ in range(1 + int(draw(1) * 3)):
        angle, offset = (draw(2) * torch.tensor([2 * math.pi, 1.0])).unbind()
        inside = (x * torch.cos(angle) + y * torch.sin(angle) > offset - 0.3).float()
        picture = torch.lerp(picture, draw(3, 1, 1).expand_as(picture), inside * 0.8)
    angle, frequency, strength = (draw(3) * torch.tensor([math.pi, 24.0, 0.15])).unbind()
    along = x * torch.cos(angle) + y * torch.sin(angle)
    picture = picture + strength * torch.sin(math.pi * frequency * along)
    noise = torch.randn(picture.shape, generator=generator) * (draw(1) * 0.06)
    return ((picture + noise).clamp(0, 1) * 255).round().to(torch.uint8)
