"""Pooling of feature maps into one vector, for nets that were trained already (SuperGlobal, arXiv 2308.06954).

maps of each size --> regional GeM --> GeM --> (whitening of the net) --> the largest over sizes --> length 1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import ConfigError

SMALLEST = 1e-8


def gem(maps: Tensor, power: float = 4.6) -> Tensor:
    """Return the generalised mean over places, [B, C], of maps [B, C, H, W]: 1 is the mean, large powers the maximum.

    Raises:
        ConfigError: the power is not above 0.
    """
    if not power > 0:
        raise ConfigError(f"power = {power} is not accepted: it must be above 0")
    largest = maps.clamp(min=SMALLEST).amax(dim=(2, 3), keepdim=True)  # large powers must not overflow
    return ((maps.clamp(min=SMALLEST) / largest) ** power).mean(dim=(2, 3)) ** (1 / power) * largest[:, :, 0, 0]


def regional_gem(maps: Tensor, power: float = 2.5, size: int = 5, mix: float = 0.5) -> Tensor:
    """Return maps [B, C, H, W] mixed with the generalised mean of a window about each place; edges are reflected."""
    edge = size // 2
    if min(maps.shape[2:]) <= edge:
        raise ConfigError(f"maps of {maps.shape[2]} x {maps.shape[3]} are too small for windows of {size}")
    wide = F.pad(maps.clamp(min=0.0), (edge,) * 4, mode="reflect")
    local = F.avg_pool2d(wide**power, size, stride=1) ** (1 / power)
    return mix * local + (1 - mix) * maps


def scale_gem(vectors: Sequence[Tensor], power: float | None = None) -> Tensor:
    """Return one vector of length 1 for each picture, [B, D], of the vectors that it has at several sizes.

    Args:
        power: of the generalised mean over sizes, above the smallest number; None takes the largest of unit vectors.
    """
    if power is None:
        merged = torch.stack([F.normalize(one, dim=1) for one in vectors]).amax(dim=0)
    else:
        stacked = torch.stack(list(vectors))
        least = stacked.amin()
        merged = (stacked - least).pow(power).mean(dim=0).pow(1 / power) + least
    return F.normalize(merged, dim=1)
