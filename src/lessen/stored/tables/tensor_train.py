"""Tensor-train tables: a row is the product of one slice from each of three small cores.

y = i1 * p2 p3 + i2 * p3 + i3
G1[i1] (q1 x R) @ G2[i2] (R x q2 R) -> (q1 q2 x R) @ G3[i3] (R x q3) -> q1 q2 q3 >= d values, the first d taken
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.tables.embedding import TableShape, inner_table
from lessen.stored.tables.partly_exact import PartlyExactEmbedding, Places


def balanced(product: int) -> tuple[int, int, int]:
    """Return three whole numbers near the cube root whose product is at least `product`, the smallest first."""
    first = max(1, math.floor(round(product ** (1 / 3), 9)))
    second = max(1, math.isqrt(-(-product // first)))
    return first, second, -(-product // (first * second))


@stored
class TensorTrainEmbedding(PartlyExactEmbedding):
    """State: `first`, `middle`, `last` (`nn.Embedding` each, one row a slice) and `exact` (rows of small fields).

    Ids repeated in a batch are computed once. No kernel exists on CPUs: this form trades time for bytes.
    """

    kind = "tensor-train-embedding"
    factors = ("first", "middle", "last")

    def __init__(self, shape: TableShape, exact_blocks: list[int], rank: int) -> None:
        super().__init__(shape, exact_blocks)
        self.rank = checks.whole("rank", rank, 1, 4096)
        self.digits = balanced(max(self.computed_rows, 1))
        self.parts = balanced(shape.dim)
        q1, q2, q3 = self.parts
        self.first = inner_table(self.digits[0], q1 * self.rank)
        self.middle = inner_table(self.digits[1], self.rank * q2 * self.rank)
        self.last = inner_table(self.digits[2], self.rank * q3)

    def extra_config(self) -> dict[str, Any]:
        """Return the exact blocks and the rank."""
        return {**super().extra_config(), "rank": self.rank}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Draw cores from the tails of a normal (so that products do not pile up at zero), scaled to `std`."""
        cores = (self.first.weight, self.middle.weight, self.last.weight)
        for core in cores:
            size = torch.randn(core.shape, generator=generator).abs() * 0.35 + 2.0
            sign = torch.randint(0, 2, core.shape, generator=generator) * 2.0 - 1.0
            core.copy_(size * sign)
        sample = self.rows(torch.arange(0, self.computed_rows, max(1, self.computed_rows // 4096)))
        factor = (std / float(sample.std().clamp(min=1e-12))) ** (1 / 3)
        for core in cores:
            core.mul_(factor)
        self.reset_exact(std, generator)

    def rows(self, compact: Tensor) -> Tensor:
        """Return the vectors of flat ids int64 [n], float32 [n, dim]."""
        _, p2, p3 = self.digits
        q1, q2, q3 = self.parts
        left = self.first(compact // (p2 * p3)).view(-1, q1, self.rank)
        middle = self.middle(compact // p3 % p2).view(-1, self.rank, q2 * self.rank)
        right = self.last(compact % p3).view(-1, self.rank, q3)
        product = torch.bmm(torch.bmm(left, middle).view(-1, q1 * q2, self.rank), right)
        return product.flatten(1)[:, : self.embedding_dim]

    def squared_norm(self) -> Tensor:
        """Return the sum of squares of the train's rows, those beyond the last id included, without making a row.

        Each core is contracted with itself: rows x rank^3 multiply-adds for the middle one.
        """
        _, q2, q3 = self.parts
        left = self.first.weight.view(-1, self.rank)
        middle = self.middle.weight.view(-1, self.rank, q2, self.rank)
        right = self.last.weight.view(-1, self.rank, q3).movedim(1, 0).flatten(1)
        inner = right @ right.t()
        inner = torch.einsum("iaqc,cd,ibqd->ab", middle, inner, middle)
        return ((left @ inner) * left).sum()

    def computed(self, places: Places) -> Tensor:
        """Return the product of three slices for each id, each distinct id once."""
        compact = places.compact.clamp(0, max(self.computed_rows - 1, 0))
        distinct, position = torch.unique(compact, return_inverse=True)
        return self.rows(distinct)[position]
