"""Compact linear layers inside an ONNX graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.stored.integers import sums
from lessen.stored.linears.int8_linear import Int8Linear


class Int8Rows(nn.Module):
    """An int8 linear layer with a scale a row of its input: `codes` int8 [out, in], `scales` and `bias` [out].

    onnxruntime takes MatMulInteger, the product of two scales and a bias for one operation that knows a single scale
    for all rows, and then answers wrongly. The scales are multiplied one after another here, which it leaves alone.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        if layer.activations != "row":
            raise ConfigError(
                "an int8-linear with one activation scale a batch has no ONNX form; use linear-int8:activations=row"
            )
        self.register_buffer("codes", layer.codes)
        self.register_buffer("scales", layer.scales)
        self.register_buffer("bias", layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float [*, in] to float32 [*, out]."""
        flat = inputs.reshape(-1, self.codes.shape[1]).float()
        scale = flat.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127.0
        products = sums(torch.round(flat / scale).to(torch.int8), self.codes).float()
        return (products * self.scales * scale + self.bias).reshape(*inputs.shape[:-1], self.codes.shape[0])
