"""A convolution as two: one to a few channels, and one of single points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.linears.low_rank import dense_weight
from lessen.stored.linears.static_int8 import LAYERS, StaticInt8Conv

KINDS: dict[int, Any] = {sides: kind for kind, sides in LAYERS.items()}


@stored
class LowRankConv(StoredModule):
    """y = up(down(x)): `down` [rank, in, sides] without bias, with stride and padding of the layer; `up` [out, rank, 1]
    with the bias. Both are convolutions of torch.
    """

    kind = "low-rank-conv"

    def __init__(self, geometry: Mapping[str, Any], rank: int) -> None:
        super().__init__()
        if not isinstance(geometry, Mapping):
            raise TypeError(f"geometry must be the arguments of a convolution, found {geometry!r}")
        with torch.device("meta"):
            shape = StaticInt8Conv.from_config(geometry)  # it checks sizes, and knows torch's arguments
        self.geometry = shape.config()
        if shape.groups != 1:
            raise ValueError(f"a convolution of {shape.groups} groups has no low-rank form")
        self.in_channels, self.out_channels = shape.in_channels, shape.out_channels
        self.rank = checks.whole("rank", rank, 1, min(shape.out_channels, shape.codes[0].numel()))
        kind = KINDS[len(shape.kernel_size)]
        down = {**self.geometry, "out_channels": self.rank, "bias": False}
        self.down = _empty(kind, **down)
        self.up = _empty(
            kind, in_channels=self.rank, out_channels=self.out_channels, kernel_size=1, bias=shape.bias is not None
        )

    def config(self) -> dict[str, Any]:
        """Return the arguments of the convolution, and the rank."""
        return {"geometry": self.geometry, "rank": self.rank}

    def forward(self, input: Tensor) -> Tensor:
        """Map [batch, in, *] to [batch, out, *]."""
        result: Tensor = self.up(self.down(input))
        return result

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in, sides]."""
        up, down = dense_weight(self.up).flatten(1), dense_weight(self.down)
        return (up @ down.flatten(1)).view(len(up), *down.shape[1:])


def _empty(kind: Any, **arguments: Any) -> nn.Module:
    """Return an uninitialised convolution on the default device, without drawing random numbers."""
    device = torch.empty(0).device
    made: nn.Module = kind(**arguments, device="meta").to_empty(device=device)
    return made
