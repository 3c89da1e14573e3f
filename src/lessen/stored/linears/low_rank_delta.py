"""A frozen linear layer with a low-rank correction beside it: what an adapter trains and stores."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.linears.low_rank import empty_linear


@stored
class LowRankDelta(StoredModule):
    """y = layer(x) + scale * up(down(x)); `layer` is the base's own `nn.Linear`, `down` [rank, in], `up` [out, rank].

    A base that is named by an artifact holds `layer` already, so that the artifact stores `down` and `up` only.
    """

    kind = "low-rank-delta"

    def __init__(self, in_features: int, out_features: int, bias: bool, rank: int, scale: float) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        self.rank = checks.whole("rank", rank, 1, min(self.in_features, self.out_features))
        checks.elements("a weight", self.in_features, self.out_features)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, found {scale!r}")
        self.scale = float(scale)
        self.layer = empty_linear(self.in_features, self.out_features, bool(checks.one_of("bias", bias, (True, False))))
        self.down = nn.Parameter(torch.zeros(self.rank, self.in_features))
        self.up = nn.Parameter(torch.zeros(self.out_features, self.rank))

    def config(self) -> dict[str, Any]:
        """Return the sizes and the scale."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.layer.bias is not None,
            "rank": self.rank,
            "scale": self.scale,
        }

    @classmethod
    def around(cls, layer: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> LowRankDelta:
        """Return `layer`, frozen, with a correction that is zero at first: `down` drawn, `up` zero."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, layer.bias is not None, rank, scale)
        made = made.to_empty(device=layer.weight.device)
        made.layer = layer.requires_grad_(False)
        bound = 1.0 / math.sqrt(layer.in_features)
        drawn = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            made.down.copy_(drawn)
            made.up.zero_()
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Map [*, in] to [*, out]."""
        correction = functional.linear(functional.linear(input, self.down), self.up)
        return torch.add(self.layer(input), correction, alpha=self.scale)

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in] of both together, float32."""
        return (self.layer.weight + self.scale * self.up @ self.down).detach().float()
