"""The grid that groups of weights lie on: 2^bits levels, evenly spaced, for each run of `group` inputs of an output.

asymmetric    value = scale * code + minimum               codes 0 ... 2^bits - 1
symmetric     value = scale * (code - 2^(bits - 1))        zero is a level
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits of a code that methods and stored forms know."""


@dataclass(frozen=True)
class GroupGrid:
    """Scales and minimums, fp16 [out, groups]; without minimums the grid is symmetric.

    Inputs i with i // group equal share a level of `scales`; the last group may be shorter. `scale_bits`: scales and
    minimums are stored as codes of so many bits (`coded_scales`) and rounded to them already; none: as they are.
    """

    bits: int
    group: int
    scales: Tensor
    minimums: Tensor | None = None
    scale_bits: int | None = None

    def values(self, codes: Tensor, first: int = 0) -> Tensor:
        """Return the values, float32 [out, inputs], that codes uint8 [out, inputs] stand for.

        Args:
            first: the input that the first column of `codes` belongs to.
        """
        return decode(codes, *self._columns(first, codes.shape[1]), self.bits)

    def codes(self, weight: Tensor, first: int = 0) -> Tensor:
        """Return the codes, uint8 [out, inputs], of the levels nearest to weights [out, inputs]."""
        steps = nearest(weight.float(), *self._columns(first, weight.shape[1]), self.bits)
        return steps.to(torch.uint8)

    def rows(self, part: slice) -> GroupGrid:
        """Return the grid of some outputs."""
        minimums = None if self.minimums is None else self.minimums[part]
        return GroupGrid(self.bits, self.group, self.scales[part], minimums, self.scale_bits)

    def _columns(self, first: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Return scale and minimum of `count` inputs from `first` on, float32 [out, count]."""
        groups = torch.arange(first, first + count, device=self.scales.device) // self.group
        scales = self.scales.index_select(1, groups).float()
        return scales, None if self.minimums is None else self.minimums.index_select(1, groups).float()


def nearest(weight: Tensor, scales: Tensor, minimums: Tensor | None, bits: int) -> Tensor:
    """Return the codes, whole numbers in float32, of the levels nearest to float32 weights; all shapes broadcast.

    A scale of zero has one level: its code is that of the minimum, or of zero.
    """
    offset = weight if minimums is None else weight - minimums
    steps = torch.where(scales == 0, 0.0, offset / scales).round_()
    if minimums is None:
        steps += 1 << (bits - 1)
    return steps.clamp_(0, 2**bits - 1)


def decode(codes: Tensor, scales: Tensor, minimums: Tensor | None, bits: int) -> Tensor:
    """Return the float32 values of codes; all shapes broadcast."""
    if minimums is None:
        return (codes.float() - (1 << (bits - 1))) * scales
    return codes.float() * scales + minimums


def group_count(inputs: int, group: int) -> int:
    """Return how many groups a row of `inputs` weights has; the last may be shorter."""
    return -(-inputs // group)
