"""A linear layer whose weights are packed codes of 2 to 8 bits with 16 bit scales for groups of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.errors import InputError
from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.linears.group_grid import WIDTHS, GroupGrid, group_count

DECODED = 2**20
"""Weights that a forward decodes at a time."""


@stored
class GroupQuantizedLinear(StoredModule):
    """Storage with decoded compute: bytes are saved on disk and in memory, time is not.

    State: `codes` uint8 [out, packed bytes of a row] (see `stored.bits`), `scales` fp16 [out, groups], `minimums`
    fp16 [out, groups] unless symmetric, `bias` float32 [out] or none. Values are those of `GroupGrid`. A forward
    decodes some outputs at a time (at most `DECODED` weights, or one row) to the input's type and multiplies in it.
    """

    kind = "group-quantized-linear"
    codes: Tensor
    scales: Tensor
    minimums: Tensor | None
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bits: int, group: int, symmetric: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", self.in_features, self.out_features)
        self.bits: int = checks.one_of("bits", bits, WIDTHS)
        self.group = checks.whole("group", group, 1, self.in_features)
        self.symmetric = bool(checks.one_of("symmetric", symmetric, (True, False)))
        has_bias = bool(checks.one_of("bias", bias, (True, False)))
        out, groups = self.out_features, group_count(self.in_features, self.group)
        packed = packing.row_bytes(self.in_features, self.bits)
        self.register_buffer("codes", torch.zeros(out, packed, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(out, groups, dtype=torch.float16))
        self.register_buffer("minimums", None if symmetric else torch.zeros(out, groups, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(out) if has_bias else None)

    def config(self) -> dict[str, Any]:
        """Return the sizes, the bits of a code, the inputs of a group, and what there is beside codes and scales."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "group": self.group,
            "symmetric": self.symmetric,
            "bias": self.bias is not None,
        }

    @classmethod
    def from_codes(cls, layer: nn.Linear, grid: GroupGrid, codes: Tensor) -> GroupQuantizedLinear:
        """Pack codes uint8 [out, in] on their grid; the bias is the layer's."""
        made = cls(
            layer.in_features, layer.out_features, grid.bits, grid.group, grid.minimums is None, layer.bias is not None
        ).to(layer.weight.device)
        made.codes.copy_(packing.pack(codes, grid.bits))
        made.scales.copy_(grid.scales)
        if made.minimums is not None and grid.minimums is not None:
            made.minimums.copy_(grid.minimums)
        if made.bias is not None:
            made.bias.copy_(layer.bias.detach())
        return made

    @property
    def grid(self) -> GroupGrid:
        """The grid that the codes lie on."""
        return GroupGrid(self.bits, self.group, self.scales, self.minimums)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float [*, in] to [*, out] of the same type. Raises InputError for inputs of another width."""
        if inputs.shape[-1] != self.in_features:
            raise InputError(f"a layer of {self.in_features} inputs was given {inputs.shape[-1]}")
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        outputs = [
            functional.linear(inputs, self.decoded(part).to(inputs.dtype), None if bias is None else bias[part])
            for part in row_parts(self.out_features, self.in_features)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in], float32."""
        return torch.cat([self.decoded(part) for part in row_parts(self.out_features, self.in_features)])

    def check_values(self) -> None:
        """Refuse scales and minimums that are not finite; every code is a level. Raises ValueError."""
        for name, tensor in (("scales", self.scales), ("minimums", self.minimums)):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} hold NaN or infinity")

    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""
        codes = packing.unpack(self.codes[part], self.bits, self.in_features)
        return self.grid.rows(part).values(codes)


def row_parts(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows of at most `DECODED` values each, and of at least one row."""
    step = max(1, DECODED // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def layer_bytes(layer: nn.Linear, bits: int, group: int, symmetric: bool) -> int:
    """Return the bytes that a layer takes in this form: codes, 2 a scale, 2 a minimum, 4 a bias."""
    groups = group_count(layer.in_features, group)
    row = packing.row_bytes(layer.in_features, bits) + (2 if symmetric else 4) * groups
    return int(layer.out_features * (row + (4 if layer.bias is not None else 0)))
