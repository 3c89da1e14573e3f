"""Torch's row-wise quantised layout: pack, unpack and look up tables of 8, 4 or 2 bit rows.

    8 bit row:     D codes    | scale fp32 | bias fp32      D + 8 bytes
    4/2 bit row:   D*b/8 code | scale fp16 | bias fp16      D*b/8 + 4 bytes, element 0 in the low bits

value = scale * code + bias. The packing and lookup operators are torch's own (`quantized::embedding_bag_*`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lessen.stored import bits as packing
from lessen.stored.tables.row_ranges import least_error

Ranges = Literal["plain", "greedy", "least"]
BITS = (8, 4, 2)
_OPERATOR = {8: "byte", 4: "4bit", 2: "2bit"}
HALF_MAX = 65_504.0


def row_bytes(dim: int, bits: int) -> int:
    """Return the bytes of one packed row of `dim` values; odd widths are padded to whole bytes."""
    return packing.row_bytes(dim, bits) + (8 if bits == 8 else 4)


def padded(dim: int, bits: int) -> int:
    """Return `dim` rounded up to the number of codes that fill whole bytes."""
    group = 8 // bits
    return -(-dim // group) * group


def representable(weight: Tensor, bits: int) -> bool:
    """Tell whether every row's range fits its parameters: fp32 for 8 bit rows, fp16 below."""
    low, high = weight.amin(dim=1).double(), weight.amax(dim=1).double()
    if bits == 8:
        return bool(((high - low) <= torch.finfo(torch.float32).max).all())
    scale = (high - low) / (2**bits - 1)
    return bool((low.abs() <= HALF_MAX).all() and (scale <= HALF_MAX).all())


def pack(weight: Tensor, bits: int, ranges: Ranges = "plain") -> Tensor:
    """Quantise float32 rows [N, D] to packed bytes uint8 [N, row_bytes(D, bits)].

    Args:
        ranges: of 4 and 2 bit rows: `plain` takes minimum and maximum, `greedy` narrows them while the squared error
            falls (arXiv 1911.02079), `least` searches the least squared error (`row_ranges`).

    Raises:
        ValueError: a row's range does not fit the parameters of this layout (see `representable`).
    """
    if not representable(weight, bits):
        raise ValueError(f"rows reach beyond the range that {bits} bit row parameters can hold; use 8 bits")
    weight = weight.detach().float()
    if bits < 8 and ranges == "least":
        found, scale, bias = least_error(weight, bits)
        parameters = torch.cat([scale, bias], dim=1).view(torch.uint8)
        return torch.cat([packing.pack(found, bits), parameters], dim=1)
    extra = padded(weight.shape[1], bits) - weight.shape[1]
    if extra:
        # a repeated value never widens the range of its row
        weight = torch.cat([weight, weight[:, -1:].expand(-1, extra)], dim=1)
    operator = getattr(torch.ops.quantized, f"embedding_bag_{_OPERATOR[bits]}_prepack")
    packed: Tensor = operator(weight.contiguous(), ranges == "greedy") if bits < 8 else operator(weight.contiguous())
    return packed


def codes(packed: Tensor, dim: int, bits: int) -> Tensor:
    """Return the integer codes uint8 [N, dim] of packed rows."""
    tail = 8 if bits == 8 else 4
    return packing.unpack(packed[:, : packed.shape[1] - tail], bits, dim)


def scales(packed: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return (scale, bias), float32 [N, 1] each, of packed rows."""
    tail = 8 if bits == 8 else 4
    kind = torch.float32 if bits == 8 else torch.float16
    parameters = packed[:, packed.shape[1] - tail :].contiguous().view(kind).float()
    return parameters[:, :1], parameters[:, 1:]


def unpack(packed: Tensor, dim: int, bits: int) -> Tensor:
    """Return the float32 rows [N, dim] of packed rows, on any device; the operators may differ by one rounding."""
    scale, bias = scales(packed, bits)
    rows: Tensor = codes(packed, dim, bits).float() * scale + bias
    return rows


def fbgemm_rows(packed: Tensor, bits: int) -> Tensor:
    """Return packed rows in FBGEMM's layout: fp16 scale and bias FIRST, then the codes, uint8 [N, 4 + codes].

    Parameters of 8 bit rows are rounded from fp32 to fp16. Raises ValueError when one overflows fp16.
    """
    scale, bias = scales(packed, bits)
    parameters = torch.cat([scale, bias], dim=1).half()
    if not bool(torch.isfinite(parameters).all()):
        raise ValueError("row scales or biases beyond 65504 do not fit FBGEMM's fp16 parameters")
    tail = 8 if bits == 8 else 4
    return torch.cat([parameters.view(torch.uint8), packed[:, : packed.shape[1] - tail]], dim=1)


def look_up(
    packed: Tensor, bits: int, ids: Tensor, offsets: Tensor, weights: Tensor | None = None, last: bool = False
) -> Tensor:
    """Return sums of bags of rows, float32 [bags, padded dim].

    Args:
        ids: int32 or int64 [n]; offsets: same dtype, start of each bag; weights: float32 [n] or None.
        last: the last offset is the end of the last bag, not a bag (`include_last_offset`).

    The 4 and 2 bit operators run on one thread however many torch has. Splitting a call over threads of our own is
    slower still: torch's threads spin for a while after every operator. Compiled lookups run on torch's (`kernels`).
    """
    operator = getattr(torch.ops.quantized, f"embedding_bag_{_OPERATOR[bits]}_rowwise_offsets")
    result: Tensor = operator(packed, ids.contiguous(), offsets, False, 0, False, weights, None, last)
    return result
