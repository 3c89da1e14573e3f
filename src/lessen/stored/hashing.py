"""The hash of the hashed tables: Carter-Wegman modulo the Mersenne prime 2^31 - 1, without a division."""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.stored import checks

PRIME = 2**31 - 1
"""A product of two residues and a residue fit int64."""


def check(name: str, constants: Tensor, lowest: int = 0) -> None:
    """Refuse constants that are no residues: their products would leave int64. Raises ValueError."""
    checks.within(name, constants, lowest, PRIME)


def residue(ids: Tensor) -> Tensor:
    """Return ids modulo the prime, for any int64 (negative ones by their bits), in [0, 2^31]."""
    return _fold((ids & PRIME) + ((ids >> 31) & PRIME) + ((ids >> 62) & 3))


def _fold(value: Tensor) -> Tensor:
    """Reduce a value below 2^62 by the prime's own shape: 2^31 = 1 modulo 2^31 - 1."""
    return (value & PRIME) + (value >> 31)


def mixed(residues: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return (a x + b) modulo the prime, int64 in [0, 2^31)."""
    return torch.clamp(_fold(_fold(residues * a + b)), max=PRIME)


def into(value: Tensor, size: Tensor | int) -> Tensor:
    """Map a hash in [0, 2^31) evenly onto [0, size), by multiplication; size below 2^32."""
    return (value * size) >> 31
