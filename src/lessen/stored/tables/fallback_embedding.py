"""One row for each field: what ids read that have no row of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.stored.base import stored
from lessen.stored.fields import block_of, cover
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table


@stored
class FallbackEmbedding(StoredEmbedding):
    """State: `table`, an `nn.Embedding` with one row a block (a field, or a run of rows in none)."""

    kind = "fallback-embedding"

    def __init__(self, shape: TableShape) -> None:
        super().__init__(shape)
        self.blocks = cover(shape.segments, shape.rows)
        self.table = inner_table(len(self.blocks), shape.dim)

    @classmethod
    def from_rows(cls, shape: TableShape, rows: Tensor) -> FallbackEmbedding:
        """Build from float32 rows [blocks, dim]."""
        made = cls(shape)
        with torch.no_grad():
            made.table.weight.copy_(rows)
        return made

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id's field: [*] to float32 [*, dim]."""
        found: Tensor = self.table(block_of(ids, self.blocks))
        return found
