"""Convolutions that train as several branches and serve as one: what RepVGG, QARepVGG and RepOptimizer share.

branches    x ─┬─ conv k x k ─ scale ─┐          one       x ─ conv k x k ─
               ├─ conv 1 x 1 ─ scale ─┤ (+) ─
               └─ (same size) scale ──┘
A scale is a batch norm, a vector that is learned, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.methods.sites import Site, replace
from lessen.stored.linears.static_int8 import geometry_of


class Branches(nn.Module):
    """Parallel branches in the place of a k x k convolution, freshly drawn.

    Args:
        layer: the convolution whose place they take.
        wide, narrow, straight: what scales the branch k x k, 1 x 1, and the input itself; gets the channels. The last
            one is used only where the input has the size of the output.
    """

    def __init__(
        self, layer: Any, wide: Callable[[int], nn.Module], narrow: Callable[[int], nn.Module],
        straight: Callable[[int], nn.Module],
    ) -> None:  # fmt: skip
        super().__init__()
        own = geometry_of(layer) | {"device": layer.weight.device, "dtype": layer.weight.dtype, "bias": False}
        self.wide = nn.Conv2d(**own)
        self.narrow = nn.Conv2d(**{**own, "kernel_size": 1, "padding": 0})
        channels = layer.out_channels
        self.wide_scale, self.narrow_scale = wide(channels), narrow(channels)
        self.straight = straight(channels) if keeps_size(layer) else None
        self.to(layer.weight.device, layer.weight.dtype)
        self.requires_grad_(layer.weight.requires_grad)  # what is frozen stays so

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H', W']."""
        found: Tensor = self.wide_scale(self.wide(maps)) + self.narrow_scale(self.narrow(maps))
        return found if self.straight is None else found + self.straight(maps)

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """Return the one convolution that answers as all branches do in evaluation mode."""
        with torch.device("meta"):  # nothing is drawn
            empty = nn.Conv2d(**(geometry_of(self.wide) | {"bias": True}), dtype=self.wide.weight.dtype)
        made = empty.to_empty(device=self.wide.weight.device)
        scale, shift = affine_of(self.wide_scale, self.wide.weight)
        kernel = self.wide.weight.double() * scale.view(-1, 1, 1, 1)
        more, moved = affine_of(self.narrow_scale, self.wide.weight)
        kernel += centred(self.narrow.weight.double() * more.view(-1, 1, 1, 1), self.wide)
        shift = shift + moved
        if self.straight is not None:
            more, moved = affine_of(self.straight, self.wide.weight)
            kernel += identity(self.wide).double() * more.view(-1, 1, 1, 1)
            shift = shift + moved
        made.weight.copy_(kernel)
        assert made.bias is not None
        made.bias.copy_(shift)
        return made.train(self.training).requires_grad_(self.wide.weight.requires_grad)


class Scale(nn.Module):
    """Multiplies each channel by a factor that is learned, at first 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Scale [B, C, H, W]."""
        return maps * self.factors.view(1, -1, 1, 1)


def affine_of(scale: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factor and shift of each channel, float64 [channels], of a scale in evaluation mode."""
    if isinstance(scale, Scale):
        return scale.factors.detach().double(), torch.zeros_like(scale.factors, dtype=torch.float64)
    if isinstance(scale, nn.BatchNorm2d):
        assert scale.running_var is not None
        assert scale.running_mean is not None
        gain = (scale.running_var.double() + scale.eps).rsqrt() * scale.weight.detach().double()
        return gain, scale.bias.detach().double() - scale.running_mean.double() * gain
    ones = torch.ones(len(like), dtype=torch.float64, device=like.device)
    return ones, torch.zeros_like(ones)


def keeps_size(layer: Any) -> bool:
    """Tell whether a centred convolution's output has the shape of its input."""
    return layer.in_channels == layer.out_channels and all(step == 1 for step in layer.stride)


def centred(kernel: Tensor, layer: Any) -> Tensor:
    """Return a kernel [out, in, 1, 1] in the middle of one of a layer's size."""
    made = kernel.new_zeros(layer.weight.shape)
    high, wide = layer.kernel_size
    made[:, :, high // 2, wide // 2] = kernel[:, :, 0, 0]
    return made


def identity(layer: Any) -> Tensor:
    """Return the kernel, of a layer's shape, that answers what it is given."""
    outputs = torch.arange(layer.out_channels, device=layer.weight.device)
    one = layer.weight.new_zeros(*layer.weight.shape[:2], 1, 1)
    one[outputs, outputs % layer.weight.shape[1]] = 1.0
    return centred(one, layer)


def cannot_branch(layer: Any) -> str | None:
    """Return why a convolution cannot have a 1 x 1 branch beside it, or None."""
    high, wide = layer.kernel_size
    if (high, wide) == (1, 1):
        return "is 1 x 1 itself"
    if high % 2 == 0 or wide % 2 == 0 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return "has no kernel with a middle over its own input"
    if tuple(layer.padding) != (high // 2, wide // 2) or any(step != 1 for step in layer.dilation):
        return "has no kernel with a middle over its own input"
    return None


def branch(
    model: nn.Module, sites: Sequence[Site], make: Callable[[Any], nn.Module], seed: int
) -> tuple[nn.Module, list[Site]]:
    """Return the model with branches in the place of layers, drawn by a seed, and where they stand."""
    made: list[Site] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = [make(site.module) for site in sites]
    for site, branches in zip(sites, drawn, strict=True):
        model = replace(model, site, branches)
        made.append(Site(site.paths, branches))
    return model, made


def merge(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """Return the model with one convolution in the place of each set of branches."""
    for site in sites:
        model = replace(model, site, site.module.merged())
    return model
