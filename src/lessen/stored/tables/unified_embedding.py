"""One hashed memory for all fields: each id reads a few narrow rows, salted by its field, side by side.

id of field f --h(id; salt f, chunk 0)--> row of memory [d / c] --.
              --h(id; salt f, chunk 1)--> row of memory [d / c] --+--> concatenated [d]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks, hashing
from lessen.stored.base import stored
from lessen.stored.kernels.hashes import Unified
from lessen.stored.kernels.located import Computed
from lessen.stored.tables.embedding import TableShape, inner_table, source_of
from lessen.stored.tables.partly_exact import PartlyExactEmbedding, Places


@stored
class UnifiedEmbedding(PartlyExactEmbedding):
    """State: `memory` (`nn.Embedding` [rows, dim / chunks]), `exact` (rows of small fields) and `salts`.

    `salts` int64 [blocks, chunks, 2] are the constants of the hash (see `hashing`), one pair for each field and
    chunk, so that equal raw ids of two fields do not collide systematically.
    """

    any_id = True
    kind = "unified-embedding"
    salts: Tensor

    def __init__(self, shape: TableShape, exact_blocks: list[int], memory_rows: int, chunks: int) -> None:
        super().__init__(shape, exact_blocks)
        self.memory_rows = checks.whole("memory_rows", memory_rows, 1, 2**31)
        self.chunks = checks.whole("chunks", chunks, 1, 64)
        if shape.dim % self.chunks:
            raise ValueError(f"chunks must divide the width {shape.dim}, found {self.chunks}")
        checks.elements("a memory", self.memory_rows, shape.dim // self.chunks)
        self.memory = inner_table(self.memory_rows, shape.dim // self.chunks)
        self.register_buffer("salts", torch.zeros(len(self.blocks), self.chunks, 2, dtype=torch.int64))

    def extra_config(self) -> dict[str, Any]:
        """Return the exact blocks, the rows of the memory and the chunks of an id."""
        return {**super().extra_config(), "memory_rows": self.memory_rows, "chunks": self.chunks}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Draw salts and rows."""
        drawn = torch.randint(0, hashing.PRIME, self.salts.shape, generator=generator)
        drawn[..., 0].clamp_(min=1)
        self.salts.copy_(drawn)
        self.memory.weight.copy_(torch.randn(self.memory.weight.shape, generator=generator) * std)
        self.reset_exact(std, generator)

    def check_values(self) -> None:
        """Refuse salts that are no residues of the hash. Raises ValueError."""
        hashing.check("salts", self.salts)

    def rows_of(self, block: Tensor, own: Tensor) -> Tensor:
        """Return the memory rows of ids `own` of fields `block`: int64 [*] each to int64 [*, chunks]."""
        salts = self.salts[0] if len(self.blocks) == 1 else self.salts[block]
        a, b = salts.unbind(-1)
        return hashing.into(hashing.mixed(hashing.residue(own).unsqueeze(-1), a, b), self.memory_rows)

    def computed_source(self) -> Computed | None:
        """Return the memory and its hashes."""
        memory = source_of(self.memory)
        if memory is None:
            return None
        return Unified(self.salts, memory, self.memory_rows, self.embedding_dim, len(self.blocks))

    def computed(self, places: Places) -> Tensor:
        """Return the chunks of each id side by side."""
        rows: Tensor = self.memory(self.rows_of(places.block, places.own)).flatten(-2)
        return rows
