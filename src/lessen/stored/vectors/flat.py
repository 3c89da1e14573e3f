"""Vectors that are searched exactly: every query is compared with every one, held as float32 or as int8 codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.integers import products


class VectorIndex(StoredModule):
    """Vectors by number; a query gets the inner product with each and the numbers of the best."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.rows = checks.whole("rows", rows, 1, 2**31)
        self.dim = checks.whole("dim", dim, 1, 2**20)
        checks.elements("an index", self.rows, self.dim)

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"rows": self.rows, "dim": self.dim}

    def scores(self, queries: Tensor) -> Tensor:
        """Return the inner product of float [B, dim] with every vector, float32 [B, rows]."""
        raise NotImplementedError(f"{type(self).__name__}.scores")

    def forward(self, queries: Tensor) -> Tensor:
        """Return the scores of every vector, float32 [B, rows]."""
        return self.scores(queries)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k best scores [B, k] and their numbers [B, k], best first.

        Raises:
            ValueError: k is not between 1 and the number of vectors.
        """
        best = self.scores(queries).topk(checks.whole("k", k, 1, self.rows), dim=1)
        return best.values, best.indices


@stored
class FlatVectors(VectorIndex):
    """State: `vectors` float32 [rows, dim]."""

    kind = "flat-vectors"
    vectors: Tensor

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(rows, dim)
        self.register_buffer("vectors", torch.zeros(self.rows, self.dim))

    @classmethod
    def of(cls, vectors: Tensor) -> FlatVectors:
        """Return an index of float vectors [rows, dim]."""
        made = cls(*vectors.shape)
        made.vectors.copy_(vectors)
        return made

    def scores(self, queries: Tensor) -> Tensor:
        """Return the inner product of float [B, dim] with every vector, float32 [B, rows]."""
        return queries.float() @ self.vectors.t()

    def dequantise(self) -> Tensor:
        """Return the vectors, float32 [rows, dim]."""
        return self.vectors


@stored
class Int8Vectors(VectorIndex):
    """State: `codes` int8 [rows, dim] and `scales` float32 [rows]; vector = scale * codes.

    A query is rounded to its own grid of 255 steps, so that products are of int8 by int8, summed exactly in int32.
    """

    kind = "int8-vectors"
    codes: Tensor
    scales: Tensor

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(rows, dim)
        self.register_buffer("codes", torch.zeros(self.rows, self.dim, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(self.rows))

    @classmethod
    def of(cls, vectors: Tensor) -> Int8Vectors:
        """Round float vectors [rows, dim] to grids of their own, max|v| / 127."""
        made = cls(*vectors.shape)
        codes, scales = _rounded(vectors.float())
        made.codes.copy_(codes)
        made.scales.copy_(scales)
        return made

    def scores(self, queries: Tensor) -> Tensor:
        """Return the inner product of float [B, dim] with every vector, float32 [B, rows]."""
        if not len(queries):
            return queries.new_zeros(0, self.rows, dtype=torch.float32)
        codes, scales = _rounded(queries.float())
        return products(codes.float(), self.codes) * scales[:, None] * self.scales

    def dequantise(self) -> Tensor:
        """Return the vectors, float32 [rows, dim]."""
        return self.codes.float() * self.scales[:, None]


def _rounded(vectors: Tensor) -> tuple[Tensor, Tensor]:
    largest = vectors.abs().amax(dim=1)
    scales = torch.where(largest > 0, largest / 127.0, torch.ones_like(largest))
    return torch.round(vectors / scales[:, None]).clamp_(-127, 127).to(torch.int8), scales
