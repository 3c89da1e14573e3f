"""Throw-away branches that make class logits of a student's features at the exits of its stages."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lessen.errors import TaskError

HEADS = 4
WINDOW = 7
"""Side of the grid of tokens that is not merged any further."""


def branch(features: Tensor, left: int, width: int, wide: int, classes: int) -> nn.Module:
    """Return the branch of one exit.

    Args:
        features: of the exit, [B, C, H, W] or [B, N, C], to learn their shape.
        left: stages after this one.
        width: of what enters the student's head.
        wide: the larger of that and what enters the teacher's head.

    Raises:
        TaskError: features of another form.
    """
    if features.ndim == 4:
        made: nn.Module = MapBranch(features.shape[1], left, wide, classes)
    elif features.ndim == 3:
        made = TokenBranch(features.shape[1], features.shape[2], left, width, classes)
    else:
        raise TaskError(
            f"a stage gives features of shape {tuple(features.shape)}; name stages that give maps "
            "[rows, channels, height, width] or tokens [rows, tokens, width]"
        )
    made.apply(_start)
    return made


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MapBranch(nn.Module):
    """Separable convolutions that halve a map once a remaining stage, then mean and a linear layer."""

    def __init__(self, channels: int, left: int, wide: int, classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for number in range(left):
            after = wide if number == left - 1 else 2 * channels
            parts.append(_separable(channels, after))
            channels = after
        if not left:
            parts.append(nn.Conv2d(channels, wide, 1))
        self.body, self.head = nn.Sequential(*parts), nn.Linear(wide, classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits [B, classes] of maps [B, C, H, W]."""
        logits: Tensor = self.head(self.body(maps).mean(dim=(2, 3)))
        return logits


def _separable(channels: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, after, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def grid_of(tokens: int) -> tuple[int, int]:
    """Return (side, leading) of so many tokens: a square of patches after a few class tokens; (0, 0) where it is none.

    Up to eight leading tokens are taken for class tokens.
    """
    side = math.isqrt(tokens)
    leading = tokens - side * side
    return (side, leading) if leading <= 8 and side > 1 else (0, 0)


class TokenBranch(nn.Module):
    """Merges of 2 x 2 patches down to a grid of about 7, Transformer blocks, and a linear layer on what they pool."""

    def __init__(self, tokens: int, channels: int, left: int, width: int, classes: int) -> None:
        super().__init__()
        self.side, self.leading = grid_of(tokens)
        merges = max(int(math.log2(self.side / WINDOW)), 0) if self.side else 0
        self.merges = nn.ModuleList()
        for number in range(merges):
            self.merges.append(Merge(channels if not number else width, width, last=number == merges - 1 > 0))
        self.widen = nn.Linear(channels, width) if channels != width else nn.Identity()
        heads = HEADS if width % HEADS == 0 else 1
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(max(left, 1))
            )
        )
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, classes] of tokens [B, N, C]."""
        first, rest = tokens[:, : self.leading], tokens[:, self.leading :]
        for merge in self.merges:
            rest = merge(rest)
        first = self.widen(first)
        hidden = self.blocks(torch.cat([first, rest if len(self.merges) else self.widen(rest)], dim=1))
        pooled = hidden[:, : self.leading] if self.leading else hidden
        logits: Tensor = self.head(pooled.mean(dim=1))
        return logits


class Merge(nn.Module):
    """Four neighbouring tokens of a square grid into one: norm of their 4 C values, linear, GELU unless the last."""

    def __init__(self, channels: int, width: int, last: bool) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, width, bias=False)
        self.bend = nn.Identity() if last else nn.GELU()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, side^2, C] to [B, (side // 2)^2, width]; an odd last row and column are left out."""
        side = math.isqrt(tokens.shape[1])
        half = side // 2
        grid = tokens.view(len(tokens), side, side, -1)[:, : 2 * half, : 2 * half]
        joined = grid.reshape(len(tokens), half, 2, half, 2, -1).permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        merged: Tensor = self.bend(self.linear(self.norm(joined)))
        return merged
