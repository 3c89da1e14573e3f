"""Static int8 layers inside an ONNX graph: QuantizeLinear and DequantizeLinear around an ordinary operation (QDQ).

    x -> Q -> DQ ---.
    codes -> DQ ----+--> MatMul or Conv (+ bias)        runtimes fuse what stands between into integer kernels

Weights are int8 in the file, a scale for each output channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored.linears.static_int8 import CONVOLVE, StaticInt8, StaticInt8Conv


class QuantisedOperation(nn.Module):
    """What both forms share: the inputs' range, int8 codes and their scales."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, layer: StaticInt8) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed

        self.step, self.zero = float(layer.step), int(layer.zero)
        for name in ("codes", "scales", "bias"):
            self.register_buffer(name, getattr(layer, name))
        self.register_buffer("zeros", torch.zeros(len(layer.scales), dtype=torch.int8))

    def operands(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return rounded inputs and the weight, float32, as the graph has them."""
        ops: Any = torch.ops.quantized_decomposed
        levels = ops.quantize_per_tensor(inputs.float(), self.step, self.zero, -128, 127, torch.int8)
        rounded = ops.dequantize_per_tensor(levels, self.step, self.zero, -128, 127, torch.int8)
        weight = ops.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, -128, 127, torch.int8)
        return rounded, weight


class StaticLinearRows(QuantisedOperation):
    """A linear layer: float [*, in] to [*, out]."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return float32 [*, out]."""
        return functional.linear(*self.operands(inputs), self.bias)


class StaticConvolution(QuantisedOperation):
    """A convolution: float [batch, in, *] to [batch, out, *]."""

    def __init__(self, layer: StaticInt8Conv) -> None:
        super().__init__(layer)
        self.convolve: Any = CONVOLVE[len(layer.kernel_size)]
        self.arguments = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return float32 [batch, out, *]."""
        made: Tensor = self.convolve(*self.operands(inputs), self.bias, *self.arguments)
        return made
