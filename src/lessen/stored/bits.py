"""Codes of 1 to 8 bits packed into bytes without gaps, low bits first, each row from a whole byte on.

byte 0                byte 1
76543210              76543210
ccbbbaaa              fed..       codes a, b, c, ... of 3 bits each
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WIDTHS = range(1, 9)


def row_bytes(count: int, bits: int) -> int:
    """Return the bytes of `count` codes; 0 bits take none."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes below 2^bits, uint8 [*, count], into uint8 [*, row_bytes(count, bits)].

    Raises:
        ValueError: bits outside 1 to 8.
    """
    _check(bits)
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes
    shape = codes.shape[:-1]
    if 8 % bits:  # codes cross bytes: one bit at a time
        codes, bits = _single(codes, bits), 1
    codes = functional.pad(codes, (0, -codes.shape[-1] % (8 // bits)))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    groups = codes.reshape(*shape, codes.shape[-1] * bits // 8, 8 // bits)
    return (groups << shifts).sum(dim=-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes, uint8 [*, count], of packed bytes, uint8 [*, bytes].

    Raises:
        ValueError: bits outside 1 to 8.
    """
    _check(bits)
    if bits == 8:
        return packed[..., :count]
    if 8 % bits == 0:
        return _single(packed, 8, bits)[..., :count]
    shape = packed.shape[:-1]
    single = _single(packed, 8)[..., : count * bits].reshape(*shape, count, bits)
    return (single << torch.arange(bits, dtype=torch.uint8, device=packed.device)).sum(dim=-1, dtype=torch.uint8)


def ones(words: Tensor) -> Tensor:
    """Return the number of set bits of non-negative int64 values, by adding neighbours."""
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101) >> 56


def _single(values: Tensor, bits: int, step: int = 1) -> Tensor:
    """Cut values uint8 [*, n] of `bits` bits into pieces of `step` bits, the lowest first: [*, n * bits / step]."""
    shifts = torch.arange(0, bits, step, dtype=torch.uint8, device=values.device)
    pieces: Tensor = (values.unsqueeze(-1) >> shifts) & (2**step - 1)
    return pieces.flatten(-2)


def _check(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"codes have 1 to 8 bits, found {bits}")
