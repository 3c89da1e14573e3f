"""Products of int8 codes that are multiplied from as they are stored, in torch.

`torch._int_mm` multiplies by blocks with VNNI. It is a plain loop without VNNI, which took 7 to 28 times as long as
float32; there whole numbers are multiplied in float32, which takes 1.2 to 2.5 times as long, decoded a block at a time.
Both give the same integers: sums of 1024 products of int8 are at most 2**24, which float32 holds exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lessen.stored.kernels import recorded, watched

EXACT = 1024
"""Products of two int8 whose sum float32 holds exactly."""
DECODED = 1 << 20
"""Codes that are decoded to float32 together."""


def blocked() -> bool:
    """Tell whether torch multiplies int8 by blocks here and sums in int32, which takes VNNI.

    torch's fused layers without it add pairs in int16, which overflow silently unless activations keep to 7 bits.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return supported is None or bool(supported())


def sums(rows: Tensor, codes: Tensor) -> Tensor:
    """Return int32 [rows, out] of int8 [rows, in] and int8 [out, in]; `torch._int_mm` is wrong for a single input."""
    return rows.int() * codes.t() if codes.shape[1] == 1 else torch._int_mm(rows, codes.t())


def products(rows: Tensor, codes: Tensor) -> Tensor:
    """Return float32 [rows, out] of whole numbers in int8's range, float32 [rows, in], with codes int8 [out, in]."""
    if blocked() or not codes.is_cpu or recorded() or watched():
        return sums(rows.to(torch.int8), codes).float()
    out = rows.new_zeros(len(rows), len(codes))
    wide = min(EXACT, codes.shape[1])
    for inputs in range(0, codes.shape[1], wide):
        given = rows[:, inputs : inputs + wide]
        for first in range(0, len(codes), DECODED // wide):
            part = slice(first, first + DECODED // wide)
            out[:, part] += functional.linear(given, codes[part, inputs : inputs + wide].float())
    return out
