r"""Compositional tables: a vector of its own for each id, made from a quotient row and a remainder row.

id - start --> // c --> quotient row ---.
           \-> mod c --> remainder row --(*, +)--> vector
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.fields import cover, located
from lessen.stored.kernels.hashes import QuotientRemainder
from lessen.stored.kernels.sources import Source
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table, source_of


def quotient_rows(rows: int, collisions: int) -> int:
    """Return ceil(rows / collisions)."""
    return -(-rows // collisions)


@stored
class QuotientRemainderEmbedding(StoredEmbedding):
    """State: `quotient` and `remainder`, an `nn.Embedding` each; every field has its own rows in both.

    A block with `collisions` 1 has one quotient row an id and one remainder row, and is exact. Vectors are composed
    per id before bags are pooled (the reference code pools first, which is another function).
    """

    kind = "quotient-remainder-embedding"
    zero_padding = True

    def __init__(self, shape: TableShape, collisions: list[int], operation: str) -> None:
        super().__init__(shape)
        self.blocks = cover(shape.segments, shape.rows)
        if not isinstance(collisions, list) or len(collisions) != len(self.blocks):
            raise ValueError(f"collisions must list {len(self.blocks)} numbers, found {collisions!r}")
        self.collisions = [
            checks.whole("collisions", c, 1, block.rows) for c, block in zip(collisions, self.blocks, strict=True)
        ]
        self.operation = str(checks.one_of("operation", operation, ("multiply", "add")))
        self.quotients = [quotient_rows(b.rows, c) for b, c in zip(self.blocks, self.collisions, strict=True)]
        self.quotient = inner_table(sum(self.quotients), shape.dim)
        self.remainder = inner_table(sum(self.collisions), shape.dim)

    def extra_config(self) -> dict[str, Any]:
        """Return how many ids share a quotient row in each block, and the operation."""
        return {"collisions": list(self.collisions), "operation": self.operation}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Start with vectors distributed as those of an ordinary table: quotient ~ N(0, std^2), remainder near 1 or 0.

        The reference initialiser is positive everywhere and starts factorisation models at huge logits.
        """
        quotient, remainder = self.quotient.weight, self.remainder.weight
        quotient.copy_(torch.randn(quotient.shape, generator=generator) * std)
        drawn = torch.randn(remainder.shape, generator=generator)
        neutral = 1.0 if self.operation == "multiply" else 0.0
        spread = 0.1 if self.operation == "multiply" else std
        exact = torch.repeat_interleave(torch.tensor(self.collisions) == 1, torch.tensor(self.collisions))
        remainder.copy_(torch.where(exact.unsqueeze(1), neutral, neutral + spread * drawn))

    def rows_of(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (quotient row, remainder row) of each id, int64 [*] each."""
        ids = ids.long()
        block, own = located(ids, self.blocks)
        shared = torch.tensor(self.collisions, device=ids.device)
        quotients = torch.tensor(self.quotients, device=ids.device)
        divisor = shared[block]
        return (
            torch.div(own, divisor, rounding_mode="floor") + (quotients.cumsum(0) - quotients)[block],
            torch.remainder(own, divisor) + (shared.cumsum(0) - shared)[block],
        )

    def source(self) -> Source | None:
        """Return both tables."""
        left, right = source_of(self.quotient), source_of(self.remainder)
        if left is None or right is None:
            return None
        starts = tuple(block.start for block in self.blocks)
        sizes = (tuple(self.collisions), tuple(self.quotients))
        return QuotientRemainder(left, right, self.num_embeddings, starts, *sizes, self.operation == "multiply")

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the composed vector of each id: [*] to float32 [*, dim]; padding gives zeros."""
        first, second = self.rows_of(ids)
        left, right = self.quotient(first), self.remainder(second)
        result: Tensor = left * right if self.operation == "multiply" else left + right
        return self._without_padding(ids, result)
