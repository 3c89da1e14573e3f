"""Few-bit layers whose scales and minimums are few-bit codes themselves: whole parts of the row's largest one.

value[o, g] = fp16(largest[o] * code[o, g] / (2^scale_bits - 1))       largest: fp16 with a sign; codes from 0 on

Bits of a weight: bits + 2 scale_bits / group + 32 / inputs (half of both if symmetric). At groups of 32 and 6 bits that
is 0.375 and the row's share, where fp16 scales take 1: what llama.cpp's K types do, with rows in place of 256 weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.linears.group_grid import WIDTHS, GroupGrid, group_count
from lessen.stored.linears.group_quantized import GroupQuantizedLinear

LEAST = 2.0**-16
"""Largest value of a row below which all its values are taken as equal: fp16 could not tell parts of it apart."""


def encode(values: Tensor, bits: int, least: int = 0) -> tuple[Tensor, Tensor]:
    """Return (codes uint8 [rows, groups], largest fp16 [rows]) for values float [rows, groups] within fp16.

    The value of largest size of a row has the last code and is exact in fp16; values of the other sign get code
    `least`. What `decode` gives comes back with the same codes.
    """
    wide = values.detach().float()
    top = wide.gather(1, wide.abs().argmax(1, keepdim=True)).half().float()
    share = torch.where(top == 0, 0.0, wide / top)
    share = torch.where(top.abs() < LEAST, (top != 0).float(), share)
    codes = (share * (2**bits - 1)).round_().clamp_(least, 2**bits - 1)
    return codes.to(torch.uint8), top.squeeze(1).half()


def decode(codes: Tensor, largest: Tensor, bits: int) -> Tensor:
    """Return the values, fp16 [rows, groups], of codes uint8 and the largest of each row."""
    share = codes.float() / ((1 << bits) - 1)
    return (largest.float().unsqueeze(1) * share).half()


def on_coded_scales(grid: GroupGrid, bits: int) -> GroupGrid:
    """Return a grid with its scales, and minimums, rounded to codes of `bits`; no scale above 0 becomes 0.

    Minimums above 0 become 0: those of a row share the sign of the largest.
    """
    scales = decode(*encode(grid.scales, bits, least=1), bits)
    minimums = None if grid.minimums is None else decode(*encode(grid.minimums.clamp(max=0), bits), bits)
    return GroupGrid(grid.bits, grid.group, scales, minimums, bits)


@stored
class CodedScalesLinear(GroupQuantizedLinear):
    """A `GroupQuantizedLinear` that stores `scale_codes` uint8 [out, packed bytes of a row's groups] and
    `largest_scale` fp16 [out] in place of `scales`, and `minimum_codes` and `largest_minimum` in place of `minimums`.

    Scales are decoded to fp16 where they are asked for, so that kernels, containers and speed are those of the plain
    form.
    """

    kind = "coded-scales-linear"
    scale_codes: Tensor
    largest_scale: Tensor
    minimum_codes: Tensor | None
    largest_minimum: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group: int,
        scale_bits: int,
        symmetric: bool = False,
        bias: bool = True,
        activations: str = "float",
    ) -> None:
        self.scale_bits: int = checks.one_of("scale_bits", scale_bits, WIDTHS)
        super().__init__(in_features, out_features, bits, group, symmetric, bias, activations)

    def _make_grid(self, out: int, groups: int) -> None:
        packed = packing.row_bytes(groups, self.scale_bits)
        for name in ("scale", "minimum"):
            kept = name == "scale" or not self.symmetric
            self.register_buffer(f"{name}_codes", torch.zeros(out, packed, dtype=torch.uint8) if kept else None)
            self.register_buffer(f"largest_{name}", torch.zeros(out, dtype=torch.float16) if kept else None)

    def config(self) -> dict[str, Any]:
        """Return the sizes and what there is, with the bits of a scale."""
        return {**super().config(), "scale_bits": self.scale_bits}

    @property
    def scales(self) -> Tensor:  # type: ignore[override]
        """The scales, fp16 [out, groups]."""
        return self._values(self.scale_codes, self.largest_scale)

    @property
    def minimums(self) -> Tensor | None:  # type: ignore[override]
        """The minimums, fp16 [out, groups], or none."""
        if self.minimum_codes is None or self.largest_minimum is None:
            return None
        return self._values(self.minimum_codes, self.largest_minimum)

    def _values(self, codes: Tensor, largest: Tensor) -> Tensor:
        groups = group_count(self.in_features, self.group)
        return decode(packing.unpack(codes, self.scale_bits, groups), largest, self.scale_bits)

    @property
    def grid(self) -> GroupGrid:
        """The grid that the codes lie on."""
        return GroupGrid(self.bits, self.group, self.scales, self.minimums, self.scale_bits)

    @torch.no_grad()
    def put(self, grid: GroupGrid) -> None:
        """Take the scales and minimums of a grid, rounded to codes; those that were rounded so stay as they are."""
        rounded = on_coded_scales(grid, self.scale_bits)
        parts = [(rounded.scales, self.scale_codes, self.largest_scale)]
        if rounded.minimums is not None:
            assert self.minimum_codes is not None
            assert self.largest_minimum is not None
            parts.append((rounded.minimums, self.minimum_codes, self.largest_minimum))
        for values, into, largest in parts:
            codes, top = encode(values, self.scale_bits)
            into.copy_(packing.pack(codes, self.scale_bits))
            largest.copy_(top)

    @property
    def _tensors(self) -> tuple[Tensor | None, ...]:
        return (
            self.codes, self.scale_codes, self.largest_scale, self.minimum_codes, self.largest_minimum, self.bias
        )  # fmt: skip

    def check_values(self) -> None:
        """Refuse largest values that are not finite. Raises ValueError."""
        for name in ("largest_scale", "largest_minimum"):
            tensor = getattr(self, name)
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} holds NaN or infinity")


def of_grid(layer: nn.Linear, grid: GroupGrid, codes: Tensor, activations: str = "float") -> GroupQuantizedLinear:
    """Return the stored form of codes uint8 [out, in] on their grid: with coded scales if the grid says so."""
    if grid.scale_bits is None:
        return GroupQuantizedLinear.from_codes(layer, grid, codes, activations)
    return CodedScalesLinear.from_codes(layer, grid, codes, activations)
