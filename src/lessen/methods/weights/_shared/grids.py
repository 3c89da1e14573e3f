"""Choosing the grid of each group of weights: from the least to the greatest weight, or narrower where that errs less.

Rules: GPTQ's quantiser (Frantar et al. 2022, arXiv 2210.17323), with an offset in place of an integer zero point; or
with one (`zeros="whole"`), and scales so short that the offset is exact in fp16: containers then hold the same values.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lessen.stored.linears.coded_scales import on_coded_scales
from lessen.stored.linears.decoded import row_parts
from lessen.stored.linears.group_grid import GroupGrid, decode, nearest

Ranges = Literal["minmax", "search"]
Zeros = Literal["free", "whole"]
HALF_DIGITS = 11
"""Binary digits of an fp16 number."""
HALF_STEP = 2.0**-24
"""Least difference of fp16 numbers."""
HALF_MAX = 65_504.0
SHRINKS = tuple(1 - step / 100 for step in range(80))
"""Shares of the range that a search tries, the whole one first."""
NORM = 2.4
"""Power of the errors that a search adds up."""


def fit_grid(
    weight: Tensor, bits: int, group: int, symmetric: bool, ranges: Ranges, zeros: Zeros = "free",
    scale_bits: int | None = None,
) -> GroupGrid:  # fmt: skip
    """Return the grid of finite weights [out, in]; every group stands by itself, the last one may be shorter.

    No weight is further than half a step from its level with `minmax`: scales and minimums are rounded to fp16 so that
    the range stays covered. `search` keeps the share of the range whose sum of |error|^2.4 is least, the whole one
    where nothing is better. With `scale_bits` scales and minimums are rounded once more, so that a weight at the end of
    a range may move by a little more.

    Args:
        zeros: `whole` makes each minimum minus a whole multiple, 0 to 2^bits - 1, of its scale; symmetric grids are so.
        scale_bits: store scales and minimums as codes of so many bits; ranges then hold zero.
    """
    fitted = [
        _fit_rows(weight[part].detach().float(), bits, group, symmetric, ranges, zeros, scale_bits is not None)
        for part in row_parts(*weight.shape)
    ]
    scales = torch.cat([scale for scale, _ in fitted])
    minimums = None if symmetric else torch.cat([minimum for _, minimum in fitted])
    made = GroupGrid(bits, group, scales, minimums)
    return made if scale_bits is None else on_coded_scales(made, scale_bits)


def quantise(weight: Tensor, grid: GroupGrid) -> Tensor:
    """Return the nearest codes, uint8 [out, in], of a weight of any float type."""
    return torch.cat([grid.rows(part).codes(weight[part].detach()) for part in row_parts(*weight.shape)])


def _fit_rows(
    weight: Tensor, bits: int, group: int, symmetric: bool, ranges: Ranges, zeros: Zeros, holding_zero: bool
) -> tuple[Tensor, Tensor]:
    """Return (scales, minimums), fp16 [rows, groups]; minimums of a symmetric grid are not used."""
    rows, width = weight.shape
    whole = width // group * group
    pieces = [weight[:, :whole].reshape(rows, -1, group), weight[:, whole:].unsqueeze(1)]
    fitted = [_fit_groups(piece, bits, symmetric, ranges, zeros, holding_zero) for piece in pieces if piece.numel()]
    return torch.cat([scale for scale, _ in fitted], 1), torch.cat([minimum for _, minimum in fitted], 1)


def _fit_groups(
    groups: Tensor, bits: int, symmetric: bool, ranges: Ranges, zeros: Zeros, holding_zero: bool
) -> tuple[Tensor, Tensor]:
    """Return (scales, minimums), fp16 [rows, groups], for weights [rows, groups, size]."""
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    if (zeros == "whole" or holding_zero) and not symmetric:
        low, high = low.clamp(max=0), high.clamp(min=0)
    best = _covering(low, high, bits, symmetric, zeros)
    if ranges == "minmax":
        return best
    # both ends move towards zero, or towards the end that is nearer to it
    pivot = torch.zeros_like(low).clamp(low, high)
    least = _error(groups, *best, bits, symmetric)
    for share in SHRINKS[1:]:
        tried = _covering(pivot + share * (low - pivot), pivot + share * (high - pivot), bits, symmetric, zeros)
        error = _error(groups, *tried, bits, symmetric)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1])
    return best


def _covering(low: Tensor, high: Tensor, bits: int, symmetric: bool, zeros: Zeros) -> tuple[Tensor, Tensor]:
    """Return (scale, minimum) in fp16 whose outermost levels are within half a step of `low` and `high`, float32."""
    levels = 2**bits - 1
    if zeros == "whole" and not symmetric:
        return _whole(low, high, levels, HALF_DIGITS - bits)
    minimum = low.half()
    if not symmetric:
        step = (high - low) / levels
        minimum = torch.where(minimum.float() - low > step / 2, _next(minimum, -torch.inf), minimum)
    scale = ((high - (low if symmetric else minimum.float())) / levels).half()
    top = scale.float() * (levels / 2 if symmetric else levels + 0.5)
    reached = top if symmetric else minimum.float() + top
    return torch.where(reached < high, _next(scale, torch.inf), scale), minimum


def _whole(low: Tensor, high: Tensor, levels: int, digits: int) -> tuple[Tensor, Tensor]:
    """Return (scale, minimum) in fp16 with the scale rounded up to so many digits that its multiples are exact."""
    scale = (high - low) / levels
    step = torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent - digits).clamp(min=HALF_STEP)
    scale = (scale / step).ceil() * step
    zero = torch.where(scale == 0, 0.0, -low / scale).round()
    zero = torch.where(zero * scale > HALF_MAX, zero - 1, zero)
    return scale.half(), -(zero * scale).half()


def _error(groups: Tensor, scale: Tensor, minimum: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Return the sum of |error|^2.4 of each group, float32 [rows, groups]."""
    step, start = scale.float().unsqueeze(-1), None if symmetric else minimum.float().unsqueeze(-1)
    error = decode(nearest(groups, step, start, bits), step, start, bits) - groups
    return error.abs_().pow_(NORM).sum(dim=-1)


def _next(values: Tensor, towards: float) -> Tensor:
    """Return the neighbours of fp16 values."""
    return torch.nextafter(values, torch.full_like(values, towards))
