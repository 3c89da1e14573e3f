"""Vectors that are searched exactly: every query is compared with every one, held as float32 or as int8 codes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lessen.stored.base import stored
from lessen.stored.integers import products
from lessen.stored.vectors.index import VectorIndex


@stored
class FlatVectors(VectorIndex):
    """State: `vectors` float32 [rows, dim]."""

    kind = "flat-vectors"
    per_row = ("vectors",)
    vectors: Tensor

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(rows, dim)
        self.register_buffer("vectors", torch.zeros(self.rows, self.dim))

    def encode(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return the vectors."""
        return {"vectors": vectors}

    def scores_of(self, queries: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Return inner products, float32 [B, n]."""
        # rows times few columns takes a third of the time of few rows times columns, and one column longer than two
        asked = queries.repeat(2, 1) if len(queries) == 1 else queries
        return (rows["vectors"] @ asked.t()).t()[: len(queries)].contiguous()

    def dequantise(self) -> Tensor:
        """Return the vectors, float32 [rows, dim]."""
        return self.vectors


@stored
class Int8Vectors(VectorIndex):
    """State: `codes` int8 [rows, dim] and `scales` float32 [rows]; vector = scale * codes.

    A query is rounded to its own grid of 255 steps, so that products are of int8 by int8, summed exactly in int32.
    """

    kind = "int8-vectors"
    per_row = ("codes", "scales")
    codes: Tensor
    scales: Tensor

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(rows, dim)
        self.register_buffer("codes", torch.zeros(self.rows, self.dim, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(self.rows))

    def encode(self, vectors: Tensor) -> dict[str, Tensor]:
        """Round float vectors [n, dim] to grids of their own, max|v| / 127."""
        codes, scales = rounded(vectors)
        return {"codes": codes, "scales": scales}

    def scores_of(self, queries: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Return inner products, float32 [B, n]."""
        codes, scales = rounded(queries)
        return integer_products(codes, rows["codes"]) * scales[:, None] * rows["scales"]

    def dequantise(self) -> Tensor:
        """Return the vectors, float32 [rows, dim]."""
        return self.codes.float() * self.scales[:, None]


def rounded(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes int8 [n, dim] and the step of each row, float32 [n]: vectors [n, dim] on grids of 255 steps."""
    largest = vectors.abs().amax(dim=1) if vectors.numel() else vectors.new_zeros(len(vectors))
    scales = torch.where(largest > 0, largest / 127.0, torch.ones_like(largest))
    return torch.round(vectors / scales[:, None]).clamp_(-127, 127).to(torch.int8), scales


def integer_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the exact products of int8 [B, dim] and int8 [n, dim], as float32 [B, n]."""
    if not len(left) or not len(right):
        return torch.zeros(len(left), len(right))
    return products(left.float(), right)
