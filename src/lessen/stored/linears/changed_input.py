"""A linear layer behind a change of its inputs: what the two forms of one share."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import StoredModule
from lessen.stored.linears.low_rank import dense_weight, empty_linear

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that torch multiplies in."""
Self = TypeVar("Self", bound="ChangedInput")


class ChangedInput(StoredModule):
    """y = layer(change(x)). State: `layer`, an `nn.Linear` or a compact form of it, and what a subclass adds."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", self.in_features, self.out_features)
        self.bias = bool(checks.one_of("bias", bias, (True, False)))
        self.layer: nn.Module = empty_linear(self.in_features, self.out_features, self.bias)

    def config(self) -> dict[str, Any]:
        """Return the sizes and whether there is a bias."""
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias}

    def twin(self) -> ChangedInput:
        """Return the empty twin; a layer of torch in it keeps the floating type of the model that it comes from."""
        made: ChangedInput = super().twin()  # type: ignore[assignment]
        if type(self.layer) is nn.Linear and self.layer.weight.dtype in FLOATS:
            made.layer.to(self.layer.weight.dtype)
        return made

    @classmethod
    def holding(cls: type[Self], layer: nn.Linear) -> Self:
        """Return a module around `layer` whose own tensors are still on no device."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, layer.bias is not None)
        made.layer = layer
        return made

    def dense(self) -> Tensor:
        """Return the layer's own dense weight [out, in], float32, that takes changed inputs."""
        return dense_weight(self.layer).float()
