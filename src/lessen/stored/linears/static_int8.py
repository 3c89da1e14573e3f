"""Layers with int8 weights and int8 inputs on a range that calibration fixed: linear ones and convolutions.

q = clamp(round(x / step) + zero, -128, 127)        one step and zero for all of a layer's inputs
y = step * scales * (q - zero) (*) codes + bias     scales: one for each output channel
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.errors import InputError
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.integers import sums

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
LAYERS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""Convolutions that have this form, and their dimensions."""


class StaticInt8(StoredModule):
    """What both share. State: `codes` int8 of the weight's shape, `scales` float32 [out], `bias` float32 [out] or none,
    `step` float32 [1] and `zero` int32 [1] of the inputs.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    step: Tensor
    zero: Tensor

    def _register(self, shape: tuple[int, ...], bias: bool) -> None:
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(shape[0]))
        self.register_buffer("bias", torch.zeros(shape[0]) if bias else None)
        self.register_buffer("step", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def fill(self, layer: Any, by_channel: bool, low: float, high: float) -> None:
        """Round a layer's weight, symmetric to +-127, and fix the range of its inputs, which always holds zero."""
        weight = layer.weight.detach().float()
        peaks = weight.abs().flatten(1).amax(1)
        peaks = peaks if by_channel else peaks.amax().expand_as(peaks)
        self.scales.copy_(torch.where(peaks > 0, peaks / 127.0, torch.ones_like(peaks)))
        each = self.scales.view(-1, *[1] * (weight.dim() - 1))
        self.codes.copy_(torch.round(weight / each).clamp_(-127, 127).to(torch.int8))
        if self.bias is not None:
            self.bias.copy_(layer.bias.detach())
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / 255.0
        self.step.fill_(step if step > 0 else 1.0)
        self.zero.fill_(round(-128 - low / float(self.step)) if step > 0 else 0)

    def levels(self, inputs: Tensor) -> Tensor:
        """Return q - zero of inputs, whole numbers in float32; what lies outside the range takes its end."""
        zero = self.zero.float()
        return torch.round(inputs.float() / self.step).clamp_(min=-128 - zero, max=127 - zero)

    def dequantise(self) -> Tensor:
        """Return the dense weight, float32."""
        return self.codes.float() * self.scales.view(-1, *[1] * (self.codes.dim() - 1))

    def check_values(self) -> None:
        """Refuse scales and steps that are not positive and finite, and a zero outside of int8. Raises ValueError."""
        for name, tensor in (("scales", self.scales), ("step", self.step)):
            if not bool((torch.isfinite(tensor) & (tensor > 0)).all()):
                raise ValueError(f"{name} must be positive and finite")
        checks.within("zero", self.zero, -128, 127)


@stored
class StaticInt8Linear(StaticInt8):
    """A linear layer; products are of integers. It answers in the type of its inputs."""

    kind = "static-int8-linear"

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", self.in_features, self.out_features)
        self._register((self.out_features, self.in_features), bool(checks.one_of("bias", bias, (True, False))))

    def config(self) -> dict[str, Any]:
        """Return the sizes and whether there is a bias."""
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias is not None}

    def forward(self, input: Tensor) -> Tensor:
        """Map float [*, in] to [*, out] of the same type. Raises InputError for inputs of another width."""
        if input.shape[-1] != self.in_features:
            raise InputError(f"a layer of {self.in_features} inputs was given {input.shape[-1]}")
        if torch.is_grad_enabled() and input.requires_grad:
            return functional.linear(input, self.dequantise().to(input.dtype), self.bias)
        flat = (self.levels(input.reshape(-1, self.in_features)) + self.zero).to(torch.int8)
        if not len(flat):
            return input.new_zeros(*input.shape[:-1], self.out_features)
        totals = sums(flat, self.codes) - self.zero * self.codes.sum(1, dtype=torch.int32)
        wide = totals.float() * (self.step * self.scales)
        wide = wide if self.bias is None else wide + self.bias
        return wide.to(input.dtype).view(*input.shape[:-1], self.out_features)

    def opaque_macs(self, *inputs: Any) -> int:
        """Return multiply-adds of one forward of float [*, in], which the flop counter does not see."""
        return int(inputs[0].numel() // self.in_features) * self.in_features * self.out_features


@stored
class StaticInt8Conv(StaticInt8):
    """A convolution over zero padding; storage with decoded compute: whole numbers are convolved in float32.

    Sums are exact below 2^24. Integer convolutions run where the model is exported to, not here.
    """

    kind = "static-int8-conv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: list[int],
        stride: list[int],
        padding: Any,
        dilation: list[int],
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = checks.whole("in_channels", in_channels, 1, 2**24)
        self.out_channels = checks.whole("out_channels", out_channels, 1, 2**24)
        self.groups = checks.whole("groups", groups, 1, self.in_channels)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self.groups} groups do not share out {self.in_channels} and {self.out_channels}")
        self.kernel_size = _sides("kernel_size", kernel_size, 1)
        self.stride, self.dilation = _sides("stride", stride, 1), _sides("dilation", dilation, 1)
        self.padding = padding if padding in ("same", "valid") else _sides("padding", padding, 0)
        sides = {len(self.kernel_size), len(self.stride), len(self.dilation)}
        if len(sides) != 1 or (not isinstance(self.padding, str) and len(self.padding) not in sides):
            raise ValueError("kernel_size, stride, padding and dilation must have one number a dimension")
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        checks.elements("a weight", *shape)
        self._register(shape, bool(checks.one_of("bias", bias, (True, False))))

    def config(self) -> dict[str, Any]:
        """Return the arguments of the convolution."""
        padding = self.padding if isinstance(self.padding, str) else list(self.padding)
        return {
            "in_channels": self.in_channels, "out_channels": self.out_channels, "kernel_size": list(self.kernel_size),
            "stride": list(self.stride), "padding": padding,
            "dilation": list(self.dilation), "groups": self.groups, "bias": self.bias is not None,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StaticInt8Conv:
        """Build an empty twin. Raises ValueError or TypeError for values that make no sense."""
        return cls(**config)

    @classmethod
    def like(cls, layer: Any) -> StaticInt8Conv:
        """Return an empty form of a convolution, on its device."""
        return cls(**geometry_of(layer)).to(layer.weight.device)

    def forward(self, input: Tensor) -> Tensor:
        """Map float [batch, in, *] to [batch, out, *] of the same type."""
        convolve: Any = CONVOLVE[len(self.kernel_size)]
        if torch.is_grad_enabled() and input.requires_grad:
            weight = self.dequantise().to(input.dtype)
            dense: Tensor = convolve(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return dense
        codes = self.codes.float()
        made: Tensor = convolve(self.levels(input), codes, None, self.stride, self.padding, self.dilation, self.groups)
        shape = (-1, *[1] * len(self.kernel_size))
        wide = made * (self.step * self.scales).view(shape)
        wide = wide if self.bias is None else wide + self.bias.view(shape)
        return wide.to(input.dtype)


def geometry_of(layer: Any) -> dict[str, Any]:
    """Return the arguments of a convolution of torch, as JSON values."""
    return {
        "in_channels": layer.in_channels, "out_channels": layer.out_channels, "kernel_size": list(layer.kernel_size),
        "stride": list(layer.stride),
        "padding": layer.padding if isinstance(layer.padding, str) else list(layer.padding),
        "dilation": list(layer.dilation), "groups": layer.groups, "bias": layer.bias is not None,
    }  # fmt: skip


def _sides(name: str, value: Any, least: int) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 3:
        raise TypeError(f"{name} must be one to three whole numbers, found {value!r}")
    return tuple(checks.whole(name, item, least, 2**16) for item in value)
