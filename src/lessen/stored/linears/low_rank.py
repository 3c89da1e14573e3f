"""A linear layer as two thin ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored


@stored
class LowRankLinear(StoredModule):
    """y = up(down(x)): `down` [rank, in] without bias, `up` [out, rank] with the bias. Both are `nn.Linear`."""

    kind = "low-rank-linear"

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        self.rank = checks.whole("rank", rank, 1, min(self.in_features, self.out_features))
        self.down = empty_linear(self.in_features, self.rank, bias=False)
        self.up = empty_linear(self.rank, self.out_features)

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"in_features": self.in_features, "out_features": self.out_features, "rank": self.rank}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LowRankLinear:
        """Build an empty twin. Raises ValueError or TypeError for sizes that make no sense."""
        return cls(**config)

    def forward(self, input: Tensor) -> Tensor:
        """Map [*, in] to [*, out]."""
        result: Tensor = self.up(self.down(input))
        return result

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in]."""
        return (dense_weight(self.up) @ dense_weight(self.down)).detach()


def empty_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Return an uninitialised `nn.Linear` on the default device, without drawing random numbers."""
    device = torch.empty(0).device
    made: nn.Linear = nn.Linear(in_features, out_features, bias, device="meta").to_empty(device=device)
    return made


def dense_weight(module: nn.Module) -> Tensor:
    """Return the float weight of a layer, whether plain or stored."""
    if isinstance(module, StoredModule):
        return module.dequantise()
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.detach()
