"""A linear layer with 16 bit weights: half the bytes, products in that type, answers in the input's."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored

Half = Literal["bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@stored
class HalfLinear(StoredModule):
    """State: `weight` [out, in] and `bias` [out] or none, bf16 or fp16. Inputs are rounded to that type on the way in.

    Sums are taken in float32 by the product's kernel.
    """

    kind = "half-linear"
    weight: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Half = "bf16") -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", self.in_features, self.out_features)
        self.dtype: str = checks.one_of("dtype", dtype, tuple(DTYPES))
        kept = DTYPES[self.dtype]
        self.register_buffer("weight", torch.zeros(self.out_features, self.in_features, dtype=kept))
        has_bias = bool(checks.one_of("bias", bias, (True, False)))
        self.register_buffer("bias", torch.zeros(self.out_features, dtype=kept) if has_bias else None)

    def config(self) -> dict[str, Any]:
        """Return the sizes, whether there is a bias, and the type."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "dtype": self.dtype,
        }

    @classmethod
    def from_dense(cls, layer: nn.Linear, dtype: Half = "bf16") -> HalfLinear:
        """Round weight and bias to the nearest value of the type."""
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, dtype).to(layer.weight.device)
        made.weight.copy_(layer.weight.detach())
        if made.bias is not None:
            made.bias.copy_(layer.bias.detach())
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Map [*, in] to [*, out] of the input's type."""
        return functional.linear(input.to(self.weight.dtype), self.weight, self.bias).to(input.dtype)

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in], float32."""
        return self.weight.float()
