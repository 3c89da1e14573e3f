"""Features of two towers as one (SD-DINO): each made of length 1, weighed, set side by side; and co-PCA of a pair.

Source: Zhang et al. 2023, arXiv 2305.15347. The cosine of fused features is the weighed mean of both cosines, so that a
tower of large numbers does not swamp the other.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import ConfigError, DataError


def fused(left: Tensor, right: Tensor, alpha: float = 0.5) -> Tensor:
    """Return features of length 1, [n, a + b], of those of two towers, [n, a] and [n, b].

    Raises:
        ConfigError: alpha is not between 0 and 1. DataError: they are not of the same examples.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha = {alpha} is not accepted: it must lie between 0 and 1")
    if len(left) != len(right):
        raise DataError(f"features of {len(left)} and {len(right)} examples cannot be fused")
    parts = [
        F.normalize(left.float(), dim=1) * math.sqrt(alpha),
        F.normalize(right.float(), dim=1) * math.sqrt(1 - alpha),
    ]
    return torch.cat(parts, dim=1)


def co_pca(first: Tensor, second: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return the cells of two pictures, [t1, c] and [t2, c], on `kept` principal directions of both together.

    Exact, where the published code draws them at random (torch.pca_lowrank); the two may have different counts.

    Raises:
        ConfigError: `kept` is not between 1 and c. DataError: widths differ.
    """
    if first.shape[1] != second.shape[1]:
        raise DataError(f"features of widths {first.shape[1]} and {second.shape[1]} have no directions in common")
    if not 1 <= kept <= first.shape[1]:
        raise ConfigError(f"kept = {kept} is not accepted: it must lie between 1 and {first.shape[1]}")
    both = torch.cat([first, second]).double()
    both = both - both.mean(dim=0)
    made = (both @ torch.linalg.eigh(both.t() @ both)[1].flip(1)[:, :kept]).float()
    return made[: len(first)], made[len(first) :]
