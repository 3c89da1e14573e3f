"""Drawn networks to fold: what training leaves behind, in any order, with statistics as if trained.

dense   linear layers with and without norms, doubled, constant and unread units, skips, chains, gates that read weights
conv    convolutions of any kernel, stride, padding and groups, norms before and behind, RepVGG branches, dead channels
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Drawn(nn.Module):
    """A network of a seed; `shape` is that of one input."""

    def __init__(self, seed: int, kind: str) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.parts = nn.ModuleList()
        self.skips: list[int] = []
        self.shape: tuple[int, ...] = (5,) if kind == "dense" else (4, 9, 9)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = self._dense(5) if kind == "dense" else self._convolutional(4)
            self.last = nn.Linear(width, 3)
        stir(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, 3]."""
        for number, part in enumerate(self.parts):
            x = x + part(x) if number in self.skips else part(x)
        answer: Tensor = self.last(x.flatten(2).mean(2) if x.dim() == 4 else x)
        return answer

    def _pick(self, count: int) -> int:
        return int(torch.randint(count, (1,), generator=self.generator))

    def _activation(self) -> nn.Module:
        kinds: tuple[Any, ...] = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid)
        return kinds[self._pick(5)]() if self._pick(4) else nn.ReLU(inplace=True)

    def _dense(self, width: int) -> int:
        for _ in range(3 + self._pick(5)):
            kind = self._pick(6)
            if kind <= 1:
                layer = nn.Linear(width, 3 + self._pick(6), bias=bool(self._pick(2)))
                self._leave(layer)
                self.parts.append(layer)
                width = layer.out_features
            elif kind == 2:
                self.parts.append(nn.BatchNorm1d(width, affine=bool(self._pick(4))))
            elif kind == 3:
                self.parts.append(self._activation())
            elif kind == 4:
                self.skips.append(len(self.parts))
                self.parts.append(nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)))
            else:
                self.parts.append(Gate(width))
        return width

    def _convolutional(self, width: int) -> int:
        for number in range(2 + self._pick(4)):
            kind = self._pick(6)
            if kind <= 1:
                groups = 2 if width % 2 == 0 and self._pick(2) else 1
                size = 1 + 2 * self._pick(2)
                layer = nn.Conv2d(
                    width, groups * (1 + self._pick(4)), size, 1, self._pick(2) * (size // 2), groups=groups,
                    bias=bool(self._pick(2)),
                )  # fmt: skip
                self._leave(layer)
                self.parts.append(layer)
                width = layer.out_channels
            elif kind == 2:
                self.parts.append(nn.BatchNorm2d(width))
            elif kind == 3:
                self.parts.append(self._activation())
            elif kind == 4:
                self.parts.append(Branches(width, bool(self._pick(2))))
            else:
                depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
                self.skips.append(len(self.parts))
                self.parts.append(nn.Sequential(depthwise, nn.BatchNorm2d(width)))
            if number == 1 and self._pick(3) == 0:
                self.parts.append(nn.AvgPool2d(3, 1, 1))
        return width

    @torch.no_grad()
    def _leave(self, layer: Any) -> None:
        """Leave a double, a unit that never varies, an input that is not read, or nothing."""
        kind = self._pick(4)
        if kind <= 1:
            layer.weight[0] = layer.weight[-1] * kind
            if layer.bias is not None:
                layer.bias[0] = layer.bias[-1]
        elif kind == 2:
            layer.weight[:, self._pick(layer.weight.shape[1])] = 0


class Gate(nn.Module):
    """Factors that read weights only, as FinalMLP's without a context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.randn(1, 4))
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the factors."""
        gated: Tensor = x * self.inner(self.context)
        return gated


class Branches(nn.Module):
    """A RepVGG block: two convolutions and perhaps the input, each with its norm, added."""

    def __init__(self, width: int, identity: bool) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.narrow = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.skip = nn.BatchNorm2d(width) if identity else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, rectified."""
        total = self.narrow(x) + self.wide(x)
        return torch.relu(total if self.skip is None else total + self.skip(x))


@torch.no_grad()
def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms statistics and scales as if they were trained, and return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            assert module.running_var is not None
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if module.affine:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    model.eval()
    return model
