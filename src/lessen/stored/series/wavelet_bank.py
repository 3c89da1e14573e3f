"""A bank of wavelet-like features of time series: 84 kernels, 6 dilations, 2 levels, 4 features each, or some of them.

    x [n, channels, T] -> u = d^-1.5 * (kernel at dilation d) * x -> 4 features
                          `-> |u| at every second step -> the same kernel again -> 4 features

A kernel has three taps of 2 and six of -1, which sum to 0, so every copy of the series is taken less the series itself:
u = 3 * (sum of its three taps) - (sum of all nine). Nine shifted copies of a channel serve all its kernels, and u is
exactly 0 on a flat stretch, where rounding would otherwise decide between above and below.
Source: arXiv 2204.01379; kernels of MiniRocket, arXiv 2012.08791.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import InputError
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored

TAPS = torch.tensor(list(itertools.combinations(range(9), 3)))
"""Positions of the three taps of weight 2, int64 [84, 3]."""
DILATIONS = (1, 2, 4, 8, 16, 32)
FEATURES = 8
"""Per kernel: at each level the share of u > 0, max |u|, longest run of u > 0 over the length, min |u|."""
PER_CHANNEL = len(TAPS) * len(DILATIONS) * FEATURES
CELLS = 1 << 24
"""Values of u that are held at once."""


@dataclass(frozen=True)
class Piece:
    """Kernels of one dilation on neighbouring channels, as index tensors."""

    dilation: int
    first: int
    """Place of the first of their channels among those that the bank reads."""
    last: int
    row: Tensor
    """Channel of each kernel counted from `first`, int64 [k]."""
    taps: Tensor
    """Its three taps, int64 [k, 3]."""
    again: Tensor
    """Taps of those wanted at level 2 too, int64 [k2, 3]."""


@dataclass(frozen=True)
class Block:
    """Pieces that are pooled together."""

    pieces: tuple[Piece, ...]
    second: Tensor
    """Which of their kernels are wanted at level 2, int64 [k2]."""
    kept: Tensor
    """Places of the kept features among 4 of each kernel at level 1, then 4 of each at level 2; int64."""


@stored
class WaveletBank(StoredModule):
    """Map series [n, channels, length] to features float32 [n, features].

    State: `channel` int16, `dilation`, `kernel`, `bits` uint8 [kernels], where bit j of `bits` keeps feature j;
    `mean`, `spread` float32 [used] of the channels that are read, in rising order. Features are ordered by dilation,
    then as the kernels stand, then by bit. Level 2 is computed only where a bit asks for it.
    """

    kind = "wavelet-bank"
    channel: Tensor
    dilation: Tensor
    kernel: Tensor
    bits: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, channels: int, length: int, used: int, kernels: int, features: int) -> None:
        super().__init__()
        self.channels = checks.whole("channels", channels, 1, 2**15 - 1)
        self.length = checks.whole("length", length, 1, 2**31)
        self.used = checks.whole("used", used, 1, self.channels)
        self.kernels = checks.whole("kernels", kernels, self.used, self.used * len(TAPS) * len(DILATIONS))
        self.features = checks.whole("features", features, self.kernels, self.kernels * FEATURES)
        self.register_buffer("channel", torch.zeros(kernels, dtype=torch.int16))
        for name in ("dilation", "kernel", "bits"):
            self.register_buffer(name, torch.zeros(kernels, dtype=torch.uint8))
        self.register_buffer("mean", torch.zeros(used))
        self.register_buffer("spread", torch.ones(used))
        self._planned: tuple[Any, Tensor, list[Block]] | None = None

    @classmethod
    def of(cls, rows: Tensor, channels: int, length: int) -> WaveletBank:
        """Build the bank of `rows`, int64 [kernels, 4]: channel, dilation index, kernel, bits. Series are not scaled.

        Raises:
            ValueError: a kernel that does not exist, or one without a feature.
        """
        ordered = rows[_order(rows)]
        count = int(_spread_bits(ordered[:, 3]).sum())
        made = cls(channels, length, len(torch.unique(ordered[:, 0])), len(ordered), count)
        for place, name in enumerate(("channel", "dilation", "kernel", "bits")):
            buffer = getattr(made, name)
            buffer.copy_(ordered[:, place].to(buffer.dtype))
        made.check_values()
        return made

    @classmethod
    def full(cls, channels: int, length: int) -> WaveletBank:
        """Build the whole bank: 4,032 features a channel."""
        every = torch.cartesian_prod(torch.arange(channels), torch.arange(len(DILATIONS)), torch.arange(len(TAPS)))
        return cls.of(torch.cat([every, torch.full((len(every), 1), 255)], dim=1), channels, length)

    @property
    def rows(self) -> Tensor:
        """Kernels as int64 [kernels, 4]: channel, dilation index, kernel, bits."""
        return torch.stack([t.long() for t in (self.channel, self.dilation, self.kernel, self.bits)], dim=1)

    @property
    def used_channels(self) -> list[int]:
        """Channels that have to be measured at all, rising."""
        return [int(channel) for channel in torch.unique(self.channel.long())]

    def feature_rows(self) -> Tensor:
        """Return where each feature comes from, int64 [features, 4]: channel, dilation index, kernel, bit."""
        rows = self.rows[_order(self.rows)]
        kernel, bit = torch.nonzero(_spread_bits(rows[:, 3]), as_tuple=True)
        return torch.cat([rows[kernel, :3], bit[:, None]], dim=1)

    def part(self, chosen: Tensor) -> WaveletBank:
        """Return the bank of some of the features, int64 [*] numbers; the scaling of channels goes along."""
        source = self.feature_rows()[chosen]
        kernels, place = torch.unique(source[:, :3], dim=0, return_inverse=True)
        bits = torch.zeros(len(kernels), dtype=torch.int64).index_add_(0, place, 1 << source[:, 3])
        made = WaveletBank.of(torch.cat([kernels, bits[:, None]], dim=1), self.channels, self.length)
        own = torch.isin(torch.unique(self.channel.long()), torch.tensor(made.used_channels))
        made.mean, made.spread = self.mean[own].clone(), self.spread[own].clone()
        return made

    def scale_by(self, series: Tensor) -> None:
        """Take mean and spread of each channel from series [n, channels, length]."""
        own = series[:, self.used_channels].double()
        self.mean = own.mean(dim=(0, 2)).float()
        self.spread = (own.std(dim=(0, 2), correction=0) + 1e-8).float()

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {
            "channels": self.channels,
            "length": self.length,
            "used": self.used,
            "kernels": self.kernels,
            "features": self.features,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WaveletBank:
        """Build an empty twin. Raises ValueError or TypeError for sizes that make no sense."""
        return cls(**config)

    def check_values(self) -> None:
        """Refuse kernels outside the bank and counts that differ from the sizes. Raises ValueError."""
        checks.within("channel", self.channel, 0, self.channels - 1)
        checks.within("dilation", self.dilation, 0, len(DILATIONS) - 1)
        checks.within("kernel", self.kernel, 0, len(TAPS) - 1)
        checks.within("bits", self.bits, 1, 255)
        if len(torch.unique(self.channel)) != self.used or int(_spread_bits(self.bits.long()).sum()) != self.features:
            raise ValueError("the kernels of the bank do not give the channels and features that its sizes say")

    def forward(self, series: Tensor) -> Tensor:
        """Map series [n, channels, length] to features [n, features]. Raises InputError for other shapes."""
        if series.dim() != 3 or series.shape[1] != self.channels or series.shape[2] != self.length:
            raise InputError(f"series must be [n, {self.channels}, {self.length}], found {tuple(series.shape)}")
        used, blocks = self._plan(len(series))
        scaled = (series.index_select(1, used).float() - self.mean[:, None]) / self.spread[:, None]
        return torch.cat([_features(scaled, block) for block in blocks], dim=1)

    def _plan(self, batch: int) -> tuple[Tensor, list[Block]]:
        """Return the channels read and the blocks computed at once, each within `CELLS`; kept till tensors change."""
        most = max(1, CELLS // (9 * max(batch, 1) * self.length))
        key = (
            most,
            self.channel.device,
            *(getattr(self, n)._version for n in ("channel", "dilation", "kernel", "bits")),
        )
        if self._planned is None or self._planned[0] != key:
            rows = self.rows[_order(self.rows)]
            used, place = torch.unique(rows[:, 0], return_inverse=True)
            parts = zip(torch.split(rows, most), torch.split(place, most), strict=True)
            self._planned = (key, used, [_block(part, places) for part, places in parts])
        return self._planned[1:]

    def dequantise(self) -> Tensor:
        """Return the kernels as weights [kernels, 9], before the factor of their dilation."""
        weights = torch.full((self.kernels, 9), -1.0, device=self.kernel.device)
        return weights.scatter_(1, TAPS.to(self.kernel.device)[self.kernel.long()], 2.0)

    def opaque_macs(self, *inputs: Any) -> int:
        """Return additions: nine a step for each channel and dilation read, four for each kernel; half at level 2."""
        shared = len(torch.unique(self.rows[:, :2], dim=0))
        second = int((self.bits >= 16).sum())
        steps = 9 * shared + 4 * self.kernels + (9 + 4) * second // 2
        return len(inputs[0]) * self.length * steps


def _block(rows: Tensor, place: Tensor) -> Block:
    """Return the plan of ordered kernels `rows` [k, 4] on the channels `place` [k] of those read."""
    kept = _spread_bits(rows[:, 3])
    second = kept[:, 4:].any(dim=1)
    pieces = []
    for number in torch.unique(rows[:, 1]).tolist():
        own = rows[:, 1] == number
        first, last = int(place[own].min()), int(place[own].max())
        taps = TAPS.to(rows.device)[rows[:, 2]]
        pieces.append(Piece(DILATIONS[number], first, last, place[own] - first, taps[own], taps[own & second]))
    early = torch.arange(4 * len(rows), device=rows.device).view(-1, 4)
    late = 4 * len(rows) + 4 * (second.cumsum(0) - 1)[:, None] + torch.arange(4, device=rows.device)
    return Block(tuple(pieces), torch.nonzero(second)[:, 0], torch.cat([early, late], dim=1)[kept])


def _features(scaled: Tensor, block: Block) -> Tensor:
    """Return the kept features of a block on scaled channels [n, used, T]."""
    u = [responses(scaled[:, p.first : p.last + 1], p.taps, p.dilation, p.row) for p in block.pieces]
    joined = torch.cat(u, dim=1)
    found = [pooled(joined).flatten(1)]
    if len(block.second):
        half = joined[..., ::2].index_select(1, block.second).abs_()
        parts = zip(block.pieces, torch.split(half, [len(piece.again) for piece in block.pieces], dim=1), strict=True)
        u = [responses(own, p.again, p.dilation, torch.arange(len(p.again), device=own.device)) for p, own in parts]
        found.append(pooled(torch.cat(u, dim=1)).flatten(1))
    return torch.cat(found, dim=1).index_select(1, block.kept)


def responses(series: Tensor, taps: Tensor, dilation: int, row: Tensor) -> Tensor:
    """Return u of kernels with `taps` [k, 3] on `series` [n, rows, T]: [n, k, T], zeros beyond the ends.

    Kernel j reads row `row[j]`.
    """
    reach, length = 4 * dilation, series.shape[-1]
    shifted = F.pad(series, (reach, reach)).unfold(-1, length, dilation) - series.unsqueeze(2)  # [n, rows, 9, T]
    everything = shifted.sum(dim=2)[:, row]
    three = shifted[:, row[:, None], taps].sum(dim=2)
    return three.mul_(3.0).sub_(everything).mul_(dilation**-1.5)


def pooled(u: Tensor) -> Tensor:
    """Return the four features of u [n, k, T]: [n, k, 4]; a run that reaches the last sample counts."""
    positive, size = u > 0, u.abs()
    steps = torch.arange(1, u.shape[-1] + 1, dtype=torch.int32, device=u.device)
    last = steps.expand(u.shape).masked_fill(positive, 0).cummax(dim=-1).values
    run = (steps - last).amax(dim=-1) / u.shape[-1]
    least, most = size.aminmax(dim=-1)
    return torch.stack([positive.sum(dim=-1) / u.shape[-1], most, run, least], dim=-1)


def _order(rows: Tensor) -> Tensor:
    """Return the order by dilation, then channel, then kernel."""
    place = (rows[:, 1] * 2**15 + rows[:, 0]) * len(TAPS) + rows[:, 2]
    return torch.argsort(place, stable=True)


def _spread_bits(bits: Tensor) -> Tensor:
    """Return bits [k] as bool [k, 8], lowest first."""
    return (bits[:, None] >> torch.arange(FEATURES, device=bits.device)) & 1 == 1
