"""One hashed memory for all fields: each id reads a few narrow rows, salted by its field, side by side.

id of field f --h(id; salt f, chunk 0)--> row of memory [d / c] --.
              --h(id; salt f, chunk 1)--> row of memory [d / c] --+--> concatenated [d]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.fields import cover
from lessen.stored.hashed_embedding import PRIME


@stored
class UnifiedEmbedding(StoredEmbedding):
    """State: `memory` (`nn.Embedding` [rows, dim / chunks]), `exact` (rows of small fields) and `salts`.

    `salts` int64 [blocks, chunks, 2] are the constants of ((a x + b) mod p) mod rows, one pair for each field and
    chunk, so that equal raw ids of two fields do not collide systematically. Blocks listed in `exact_blocks` keep
    rows of their own in `exact` (which always has at least one row).
    """

    kind = "unified-embedding"
    salts: Tensor

    def __init__(self, shape: TableShape, memory_rows: int, chunks: int, exact_blocks: list[int]) -> None:
        super().__init__(shape)
        self.blocks = cover(shape.segments, shape.rows)
        self.memory_rows = checks.whole("memory_rows", memory_rows, 1, 2**40)
        self.chunks = checks.whole("chunks", chunks, 1, 64)
        if shape.dim % self.chunks:
            raise ValueError(f"chunks must divide the width {shape.dim}, found {self.chunks}")
        if not isinstance(exact_blocks, list):
            raise TypeError(f"exact_blocks must be a list, found {exact_blocks!r}")
        self.exact_blocks = [checks.whole("exact_blocks", item, 0, len(self.blocks) - 1) for item in exact_blocks]
        own = sum(self.blocks[item].rows for item in self.exact_blocks)
        self.memory = inner_table(self.memory_rows, shape.dim // self.chunks)
        self.exact = inner_table(max(own, 1), shape.dim)
        self.register_buffer("salts", torch.zeros(len(self.blocks), self.chunks, 2, dtype=torch.int64))

    def extra_config(self) -> dict[str, Any]:
        """Return the rows of the memory, the chunks of an id and the blocks with rows of their own."""
        return {"memory_rows": self.memory_rows, "chunks": self.chunks, "exact_blocks": list(self.exact_blocks)}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Draw salts and rows."""
        drawn = torch.randint(0, PRIME, self.salts.shape, generator=generator)
        drawn[..., 0].clamp_(min=1)
        self.salts.copy_(drawn)
        for table in (self.memory, self.exact):
            table.weight.copy_(torch.randn(table.weight.shape, generator=generator) * std)

    def rows_of(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return memory rows int64 [*, chunks], exact rows int64 [*] and whether the id is exact, bool [*]."""
        ids = ids.long()
        starts = torch.tensor([block.start for block in self.blocks], device=ids.device)
        block = torch.bucketize(ids, starts[1:], right=True)
        own = ids - starts[block]
        a, b = self.salts[block].unbind(-1)
        mixed = torch.remainder(torch.remainder(own, PRIME).unsqueeze(-1) * a + b, PRIME)
        offsets = torch.full((len(self.blocks),), -1, dtype=torch.int64)
        first = 0
        for item in self.exact_blocks:
            offsets[item], first = first, first + self.blocks[item].rows
        offset = offsets.to(ids.device)[block]
        is_exact = offset >= 0
        return torch.remainder(mixed, self.memory_rows), torch.where(is_exact, offset + own, 0), is_exact

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the chunks of each id side by side: [*] to float32 [*, dim]; padding gives zeros."""
        rows, exact_rows, is_exact = self.rows_of(ids)
        shared: Tensor = self.memory(rows).flatten(-2)
        if self.exact_blocks:
            shared = torch.where(is_exact.unsqueeze(-1), self.exact(exact_rows), shared)
        if self.padding_idx is None:
            return shared
        return shared.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)
