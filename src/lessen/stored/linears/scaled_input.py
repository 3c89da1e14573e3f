"""A layer whose inputs are multiplied by a factor each before it: what could not be folded into what makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.linears.low_rank import dense_weight, empty_linear


@stored
class ScaledInput(StoredModule):
    """y = layer(factors * x). State: `factors` fp16 [in], and `layer`, an `nn.Linear` or a compact form of it."""

    kind = "scaled-input"
    factors: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", self.in_features, self.out_features)
        self.bias = bool(checks.one_of("bias", bias, (True, False)))
        self.register_buffer("factors", torch.ones(self.in_features, dtype=torch.float16))
        self.layer: nn.Module = empty_linear(self.in_features, self.out_features, self.bias)

    def config(self) -> dict[str, Any]:
        """Return the sizes and whether there is a bias."""
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias}

    @classmethod
    def around(cls, layer: nn.Linear, factors: Tensor) -> ScaledInput:
        """Return `layer` behind factors [in], whose columns it must have been divided by."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, layer.bias is not None)
        made.layer = layer
        made.factors = factors.detach().to(device=layer.weight.device, dtype=torch.float16)
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [*, in] to [*, out]."""
        result: Tensor = self.layer(inputs * self.factors.to(inputs.dtype))
        return result

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in], float32, that takes inputs as they come."""
        return dense_weight(self.layer).float() * self.factors.float()

    def check_values(self) -> None:
        """Refuse factors that are not finite. Raises ValueError."""
        if not bool(torch.isfinite(self.factors).all()):
            raise ValueError("factors hold NaN or infinity")
