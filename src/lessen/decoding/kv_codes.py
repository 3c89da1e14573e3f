"""Keys and values as codes of 2, 4 or 8 bits: keys by channel over a block of tokens, values by token over channels.

keys    [..., block, group, width]    one scale and minimum for each channel of a block of `group` tokens
values  [..., block, group, width]    one scale and minimum for each run of channels of a token

A level is `scale * code + minimum`; scale and minimum are fp16. Keys differ between channels (a few are far from zero
for all tokens), values between tokens, hence the two directions. Source: KIVI, arXiv 2402.02750; the grid with its
bounds is that of IntactKV's KV quantiser (arXiv 2403.01241), which takes one direction for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.errors import NonFiniteError
from lessen.stored.bits import pack, unpack

FINEST, COARSEST = 1e-5, 1e4
"""Bounds of a scale."""
EXACT = 16
"""Bits that stand for states kept as the model makes them."""


@dataclass(frozen=True)
class Form:
    """How a cache holds keys and values."""

    bits: int = EXACT
    """2, 4 or 8 bits a code; 16 keeps states as they are."""
    group: int = 32
    """Tokens that share the scales of keys, and channels that share the scale of a value."""
    residual: int = 128
    """Newest tokens that stay exact, at least."""

    @property
    def coded(self) -> bool:
        """Whether anything is quantised."""
        return self.bits != EXACT


@dataclass(frozen=True)
class Coded:
    """Tokens in codes, in whole blocks: packed codes uint8 [..., blocks, group, bytes], scales and minimums fp16.

    `run` is the number of channels that share a scale; 0 says that each channel has one for all tokens of a block.
    """

    codes: Tensor
    scales: Tensor
    minimums: Tensor
    bits: int
    width: int
    run: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.codes.shape[-3]

    def decode(self, out: Tensor) -> None:
        """Write the states into `out` [..., blocks, group, width], float32."""
        out.copy_(self.codes if self.bits == 8 else unpack(self.codes, self.bits, self.width))
        scales, minimums = self.scales.float(), self.minimums.float()
        if self.run:
            shared = torch.unflatten(out, -1, (-1, self.run))
            shared.mul_(scales.unsqueeze(-1)).add_(minimums.unsqueeze(-1))
        else:
            out.mul_(scales).add_(minimums)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, scales and minimums."""
        return self.codes, self.scales, self.minimums

    def of(self, tensors: tuple[Tensor, Tensor, Tensor]) -> Coded:
        """Return the same form around other tensors."""
        return Coded(*tensors, self.bits, self.width, self.run)


def run_of(width: int, group: int) -> int:
    """Return how many channels of a head share a scale: the largest divisor of `width` not above `group`."""
    return next(size for size in range(min(width, group), 0, -1) if width % size == 0)


def encode_keys(states: Tensor, bits: int) -> Coded:
    """Return codes of keys [..., blocks, group, width]. Raises NonFiniteError for states that fp16 cannot scale."""
    low, high = states.aminmax(dim=-2, keepdim=True)
    return _coded(states, low, high, bits, 0)


def encode_values(states: Tensor, bits: int, run: int) -> Coded:
    """Return codes of values [..., blocks, group, width], `run` channels to a scale. Raises NonFiniteError."""
    shared = torch.unflatten(states, -1, (-1, run))
    low, high = shared.aminmax(dim=-1)
    return _coded(states, low, high, bits, run)


def _coded(states: Tensor, low: Tensor, high: Tensor, bits: int, run: int) -> Coded:
    levels = 2**bits - 1
    scales = ((high.float() - low.float()) / levels).clamp(FINEST, COARSEST).half()
    minimums = low.half()
    if not bool(torch.isfinite(minimums).all()):
        raise NonFiniteError("keys or values are NaN, infinite or beyond 65504; such states cannot be quantised")
    step, base = scales.float(), minimums.float()
    if run:
        step, base = (part.repeat_interleave(run, -1) for part in (step, base))
    codes = ((states.float() - base) / step).round_().clamp_(0, levels).to(torch.uint8)
    return Coded(pack(codes, bits), scales, minimums, bits, states.shape[-1], run)
