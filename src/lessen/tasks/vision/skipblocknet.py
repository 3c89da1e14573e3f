"""SkipblockNet-M, a small convolutional classifier: early features are pooled and added to later ones.

image [B,3,S,S] --stem--> base --+--> B0 --(+)--> B1 --(+)--> B2, B3 --> head [B,classes]
                                 |         |           |
                                 +--skip 1-+--skip 2---+
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

Row = tuple[int, float, int, bool, bool, int]
"""Of an inverted residual: kernel, expansion, channels, squeeze and excitation, hard swish, stride."""

STAGES: tuple[tuple[Row, ...], ...] = (
    (
        (3, 4, 24, False, False, 2),
        (3, 3, 24, False, False, 1),
        (5, 3, 40, True, False, 2),
        (5, 3, 40, True, False, 1),
        (5, 6, 40, True, True, 1),
    ),
    (
        (3, 6, 80, False, True, 2),
        (3, 2.5, 80, False, True, 1),
        (3, 2.3, 80, False, True, 1),
        (3, 2.3, 80, False, True, 1),
    ),
    ((3, 6, 112, True, True, 1), (3, 6, 112, True, True, 1)),
    ((5, 6, 160, True, True, 2), (5, 6, 160, True, True, 1), (5, 6, 160, True, True, 1)),
)
SKIPS: tuple[tuple[int, float], ...] = ((5, 6.0), (3, 2.3))
"""Kernel and expansion of the blocks that lead to the ends of B0 and B1."""


def rounded(channels: float) -> int:
    """Return the nearest multiple of 8, at least 8, that is no less than nine tenths of `channels`."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found if found >= 0.9 * channels else found + 8


def convolved(
    before: int, after: int, kernel: int, act: nn.Module, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution without bias, its norm and what bends it."""
    layer = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(after), act]


class SqueezeExcite(nn.Module):
    """Scale channels by a hard sigmoid of what two layers make of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = rounded(channels / 4)
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B,C,H,W] to the same."""
        scaled: Tensor = maps * F.hardsigmoid(self.layers(maps.mean(dim=(2, 3))))[:, :, None, None]
        return scaled


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, narrow; the input is added where shapes agree."""

    def __init__(self, before: int, after: int, row: Row) -> None:
        super().__init__()
        kernel, expansion, _, excite, swish, stride = row
        hidden = rounded(before * expansion)
        act = nn.Hardswish if swish else nn.ReLU
        parts = [] if expansion == 1 else convolved(before, hidden, 1, act())
        depthwise, norm, bend = convolved(hidden, hidden, kernel, act(), stride, hidden)
        parts += [depthwise, norm, *([SqueezeExcite(hidden)] if excite else []), bend]
        self.layers = nn.Sequential(*parts, *convolved(hidden, after, 1, nn.Identity()))
        self.residual = stride == 1 and before == after

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B,C,H,W] to [B,D,H/stride,W/stride]."""
        found: Tensor = self.layers(maps)
        return maps + found if self.residual else found


class SkipBlock(nn.Module):
    """Bring the base features to the size and channels of a later map."""

    def __init__(self, before: int, after: int, kernel: int, expansion: float) -> None:
        super().__init__()
        self.block = InvertedResidual(before, after, (kernel, expansion, after, False, False, 1))

    def forward(self, base: Tensor, later: Tensor) -> Tensor:
        """Return [B,D,h,w] of base [B,C,H,W] for a map [B,D,h,w]."""
        found: Tensor = self.block(F.adaptive_avg_pool2d(base, (later.shape[2], later.shape[3])))
        return found


class SkipblockNet(nn.Module):
    """The network of Bias Loss for Mobile Neural Networks, ICCV 2021 (arXiv 2107.11170), size M at width 1.

    Differences: skip blocks pool to the size of the map that they are added to, not to 28 and 14 pixels, so that
    pictures need not be 224 pixels wide; squeeze and excitation stands between norm and activation. It answers with
    logits alone: what a loss reads of the last map, a hook reads (see `lessen.methods.distil.bias_loss`).

    Args:
        classes: of the answer.
        width: factor on all channels but those of the linear layers' middle.
        stride: of the first convolution; 1 for pictures of 32 pixels.
        dropout: before the last layer.
    """

    def __init__(self, classes: int = 1000, width: float = 1.0, stride: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        base = rounded(16 * width)
        self.stem = nn.Sequential(
            *convolved(3, base, 3, nn.Hardswish(), stride), InvertedResidual(base, base, (3, 1, 16, False, True, 1))
        )
        before, stages, skips = base, [], []
        for number, rows in enumerate(STAGES):
            blocks: list[nn.Module] = []
            for row in rows:
                after = rounded(row[2] * width)
                blocks.append(InvertedResidual(before, after, row))
                before = after
            stages.append(nn.Sequential(*blocks))
            if number < len(SKIPS):
                skips.append(SkipBlock(base, before, *SKIPS[number]))
        self.stages, self.skips = nn.ModuleList(stages), nn.ModuleList(skips)
        wide = rounded(before * STAGES[-1][-1][1])
        self.last = nn.Sequential(*convolved(before, wide, 1, nn.Hardswish()))
        self.head = nn.Sequential(nn.Linear(wide, 1280), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(1280, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes] of images [B,3,S,S]."""
        base = maps = self.stem(images)
        for number, stage in enumerate(self.stages):
            maps = stage(maps)
            if number < len(self.skips):
                maps = maps + self.skips[number](base, maps)
        logits: Tensor = self.head(self.last(maps).mean(dim=(2, 3)))
        return logits
