"""A layer whose inputs are multiplied by a factor each before it: what could not be folded into what makes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lessen.stored.base import stored
from lessen.stored.linears.changed_input import ChangedInput


@stored
class ScaledInput(ChangedInput):
    """y = layer(factors * x). State: `factors` fp16 [in], and `layer`, an `nn.Linear` or a compact form of it."""

    kind = "scaled-input"
    factors: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("factors", torch.ones(self.in_features, dtype=torch.float16))

    @classmethod
    def around(cls, layer: nn.Linear, factors: Tensor) -> ScaledInput:
        """Return `layer` behind factors [in], whose columns it must have been divided by."""
        made = cls.holding(layer)
        made.factors = factors.detach().to(device=layer.weight.device, dtype=torch.float16)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Map [*, in] to [*, out]."""
        result: Tensor = self.layer(input * self.factors.to(input.dtype))
        return result

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in], float32, that takes inputs as they come."""
        return self.dense() * self.factors.float()

    def check_values(self) -> None:
        """Refuse factors that are not finite. Raises ValueError."""
        if not bool(torch.isfinite(self.factors).all()):
            raise ValueError("factors hold NaN or infinity")
