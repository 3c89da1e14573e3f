"""A perceiver resampler with places: learned queries on a grid look at a grid of features (SliME, arXiv 2406.08487)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resampler(nn.Module):
    """Features [P, n, D] to [P, side*side, D] by one attention.

    query = LN(q) + pos, key = LN(x) + pos, value = LN(x); LN at the end; no residual, no feed-forward layer.
    Positions are fixed sines and cosines of row and column, interpolated bicubically to the grid of the features.

    Args:
        side: of the grid of queries; width: D, a multiple of 4 and of `heads`.
    """

    def __init__(self, side: int, width: int, heads: int) -> None:
        super().__init__()
        self.side, self.width = side, width
        self.query = nn.Parameter(torch.empty(side * side, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_query, self.norm_key, self.norm_out = (nn.LayerNorm(width) for _ in range(3))
        self.register_buffer("places", sines(side, width), persistent=False)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return [P, side*side, D] of features [P, rows*columns, D] that lie on `grid`."""
        places = torch.as_tensor(self.places)
        there = places.view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        if grid != (self.side, self.side):
            there = F.interpolate(there, grid, mode="bicubic", align_corners=False)
        value = self.norm_key(features)
        key = value + there.flatten(2).transpose(1, 2).to(value.dtype)
        query = (self.norm_query(self.query) + places.to(value.dtype)).expand(len(features), -1, -1)
        out: Tensor = self.norm_out(self.attention(query, key, value, need_weights=False)[0])
        return out

    def macs(self, tokens: int) -> int:
        """Return multiply-adds of one picture of `tokens` features: projections, scores and weighted sums."""
        queries = self.side**2
        return self.width**2 * (2 * queries + 2 * tokens) + 2 * queries * tokens * self.width


def sines(side: int, width: int) -> Tensor:
    """Return fixed positions [side*side, width], half of the row and half of the column, float32."""
    steps = torch.arange(width // 4, dtype=torch.float32) / (width / 4)
    angles = torch.arange(side, dtype=torch.float32)[:, None] / 10_000**steps
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([columns, rows], 2).reshape(side * side, -1)
