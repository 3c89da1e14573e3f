"""DeCo (arXiv 2405.20985): reduce a grid of patch features by two-dimensional adaptive average pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import InputError


def pool_features(features: Tensor, grid: tuple[int, int], target: tuple[int, int], protected: int = 0) -> Tensor:
    """Return features of a coarser grid, row-major: [B, p + h*w, C] to [B, p + m_h*m_w, C].

    Output cell (i, j) averages rows floor(i h / m_h) .. ceil((i+1) h / m_h) - 1 and the same for columns; the windows
    are disjoint exactly when the target divides the grid. The first `protected` tokens are passed on unchanged. Pool
    before a projector, not after it: that is what the paper does, and it makes the projector cheaper as well.

    Raises:
        InputError: the features are not that grid, or the target is larger than it.
    """
    height, width = grid
    if features.shape[1] != protected + height * width:
        raise InputError(
            f"{features.shape[1]} tokens are not {protected} leading tokens and a {height}x{width} grid; "
            "give the grid of the tower and the number of its class and register tokens"
        )
    if not (1 <= target[0] <= height and 1 <= target[1] <= width):
        raise InputError(f"cannot pool a {height}x{width} grid to {target[0]}x{target[1]}: choose a smaller grid")
    patches = features[:, protected:].transpose(1, 2).reshape(len(features), -1, *grid)
    pooled = F.adaptive_avg_pool2d(patches, target).flatten(2).transpose(1, 2)
    return torch.cat([features[:, :protected], pooled], 1) if protected else pooled


def closest_grid(grid: tuple[int, int], budget: int) -> tuple[int, int]:
    """Return the largest target grid of at most `budget` cells whose shape is closest to that of `grid`."""
    height, width = grid
    if budget < 1:
        raise InputError(f"a budget of {budget} tokens leaves nothing; give at least 1")
    choices = [(rows, min(width, budget // rows)) for rows in range(1, min(height, budget) + 1)]
    shape = height / width

    def preference(choice: tuple[int, int]) -> tuple[float, int]:
        ratio = choice[0] / choice[1] / shape
        return max(ratio, 1 / ratio), -choice[0] * choice[1]

    return min(choices, key=preference)
