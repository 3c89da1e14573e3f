"""Vectors of 1, 2 or 4 bits a number: turned at random, rounded to odd levels, and scored without bias.

The numbers of a vector are nearly normal after a random turn, whatever the vector was, so that one grid of levels
..., -3, -1, 1, 3, ... serves all of them. With the levels l of the turned rest r of v around the centre c,

    <q, v>  is estimated by  <q, c> + (|r|^2 / <r, l>) <turned q, l>,

which is right on average over turns: the one-bit form is RaBitQ (Gao and Long 2024, arXiv 2405.12497), the forms of
more bits its extension (arXiv 2409.09913), with the levels' step found on a short grid in place of a sweep over every
step. Queries are rounded to int8, so that products are of integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels import few_bits
from lessen.stored.vectors.flat import integer_products, rounded
from lessen.stored.vectors.index import VectorIndex

BLOCK = 256
"""Numbers that are turned together at most."""
STEPS = {1: (1.0,), 2: (0.4, 0.45, 0.5, 0.56, 0.64), 4: (0.12, 0.14, 0.155, 0.17, 0.185, 0.21, 0.24, 0.28)}
"""Half distances of levels that are tried, in standard deviations of a vector's numbers."""


@stored
class RotatedVectors(VectorIndex):
    """State, a row: `codes` uint8 [rows, bytes], `factors` float32 [rows]; shared: the turn and the centre.

    `order` int32 [padded] and `signs` int8 [padded] mix the numbers before `turn` float32 [width, width], orthogonal,
    turns each block of them; `centre` float32 [dim].
    """

    kind = "rotated-vectors"
    per_row = ("codes", "factors")
    codes: Tensor
    factors: Tensor
    order: Tensor
    signs: Tensor
    turn: Tensor
    centre: Tensor

    def __init__(self, rows: int, dim: int, bits: int) -> None:
        super().__init__(rows, dim)
        self.bits: int = checks.one_of("bits", bits, (1, 2, 4))
        blocks = -(-self.dim // BLOCK)
        self.width = -(-self.dim // blocks)
        self.padded = blocks * self.width
        self.register_buffer(
            "codes", torch.zeros(self.rows, packing.row_bytes(self.padded, self.bits), dtype=torch.uint8)
        )
        self.register_buffer("factors", torch.zeros(self.rows))
        self.register_buffer("order", torch.arange(self.padded, dtype=torch.int32))
        self.register_buffer("signs", torch.ones(self.padded, dtype=torch.int8))
        self.register_buffer("turn", torch.eye(self.width))
        self.register_buffer("centre", torch.zeros(self.dim))

    @classmethod
    def fitted(cls, sample: Tensor, seed: int = 0, **sizes: Any) -> RotatedVectors:
        """Return an index without rows: a turn drawn from `seed`, and the mean of a sample, float [n, dim]."""
        made = cls(0, sample.shape[1], **sizes)
        generator = torch.Generator().manual_seed(seed)
        made.order.copy_(torch.randperm(made.padded, generator=generator))
        made.signs.copy_(torch.randint(0, 2, (made.padded,), generator=generator) * 2 - 1)
        made.turn.copy_(
            torch.linalg.qr(torch.randn(made.width, made.width, generator=generator, dtype=torch.float64))[0]
        )
        if len(sample):
            made.centre.copy_(sample.float().mean(0))
        return made

    def config(self) -> dict[str, Any]:
        """Return sizes and bits."""
        return {**super().config(), "bits": self.bits}

    def check_values(self) -> None:
        """Refuse an order that reads beyond a vector. Raises ValueError."""
        checks.within("order", self.order, 0, self.padded - 1)

    def turned(self, vectors: Tensor) -> Tensor:
        """Return float vectors [n, dim] mixed and turned, float32 [n, padded]; lengths and angles stay."""
        spare = self.padded - self.dim
        wide = torch.nn.functional.pad(vectors, (0, spare)) if spare else vectors
        mixed = wide.index_select(1, self.order) * self.signs
        return (mixed.view(-1, self.width) @ self.turn).view(len(vectors), self.padded)

    def encode(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return codes and factors of float vectors [n, dim]."""
        rest = self.turned(vectors - self.centre)
        deviation = rest.pow(2).mean(dim=1).sqrt()
        best = torch.full((len(rest),), -1.0)
        codes = torch.zeros(rest.shape, dtype=torch.uint8)
        factors = torch.zeros(len(rest))
        for step in STEPS[self.bits]:
            tried = self._nearest(rest, step * deviation)
            levels = self._levels(tried).float()
            along = (rest * levels).sum(dim=1)
            cosine = along / levels.norm(dim=1)
            better = cosine > best
            codes[better], best[better] = tried[better], cosine[better]
            factors[better] = (rest.pow(2).sum(dim=1) / along.clamp(min=torch.finfo(torch.float32).tiny))[better]
        return {"codes": packing.pack(codes, self.bits), "factors": torch.where(deviation > 0, factors, 0.0)}

    def _nearest(self, rest: Tensor, half: Tensor) -> Tensor:
        """Return the code of the nearest odd multiple of `half` [n] for each number."""
        top = (1 << self.bits) - 1
        scaled = rest / (2 * half.clamp(min=torch.finfo(torch.float32).tiny))[:, None]
        return (torch.floor(scaled) + (1 << self.bits >> 1)).clamp_(0, top).to(torch.uint8)

    def _levels(self, codes: Tensor) -> Tensor:
        return (2 * codes.to(torch.int16) - ((1 << self.bits) - 1)).to(torch.int8)

    def scores_of(self, queries: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Return estimated inner products, float32 [B, n]."""
        (asked, scales), codes, factors = rounded(self.turned(queries)), rows["codes"], rows["factors"]
        offsets = queries @ self.centre
        if self.padded * self.bits == 8 * codes.shape[1] and few_bits.takes(codes, asked):
            return few_bits.scores(asked, codes, self.bits, scales, factors.contiguous(), offsets)
        products = integer_products(asked, self._levels(packing.unpack(codes, self.bits, self.padded)))
        return products * scales[:, None] * factors + offsets[:, None]

    def dequantise(self) -> Tensor:
        """Return the vectors that codes stand for, float32 [rows, dim]: the nearest on their line, not the unbiased."""
        levels = self._levels(packing.unpack(self.codes, self.bits, self.padded)).float()
        mixed = ((levels * self.factors[:, None]).view(-1, self.width) @ self.turn.t()).view(self.rows, self.padded)
        wide = torch.zeros_like(mixed)
        wide[:, self.order.long()] = mixed * self.signs
        return wide[:, : self.dim] + self.centre
