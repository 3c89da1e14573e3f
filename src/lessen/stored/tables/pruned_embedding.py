"""A table that kept some of its rows: an int32 map sends every id to a kept row or to a fallback row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels.sources import Mapped, Source
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, can_bag, inner_table, source_of


@stored
class PrunedEmbedding(StoredEmbedding):
    """State: `position` int32 [rows] and `table`, an `nn.Embedding` of kept rows followed by fallback rows.

    Ids whose row is gone read the fallback row of their field (`table.weight[position[id]]` for all ids alike).
    """

    kind = "pruned-embedding"
    position: Tensor
    table: nn.Module

    def __init__(self, shape: TableShape, kept: int) -> None:
        super().__init__(shape)
        self.kept = checks.whole("kept", kept, 1, min(shape.rows + 2**20, 2**31 - 1))
        self.table = inner_table(self.kept, shape.dim)
        self.register_buffer("position", torch.zeros(shape.rows, dtype=torch.int32))

    def extra_config(self) -> dict[str, Any]:
        """Return the rows of the inner table, fallback rows included."""
        return {"kept": self.kept}

    @classmethod
    def from_dense(cls, shape: TableShape, weight: Tensor, position: Tensor) -> PrunedEmbedding:
        """Build from the rows to keep, float32 [kept, dim], and the map of ids to them, int32 [rows]."""
        made = cls(shape, len(weight))
        made.table = inner_table(len(weight), shape.dim, weight)
        made.position.copy_(position)
        return made

    def check_values(self) -> None:
        """Refuse positions beyond the rows that were kept. Raises ValueError."""
        checks.within("position", self.position, 0, self.kept - 1)

    def source(self) -> Source | None:
        """Return the map and the kept rows."""
        inner = source_of(self.table)
        return None if inner is None else Mapped(self.position, inner)

    def gathered(self, ids: Tensor) -> tuple[nn.Module, Tensor] | None:
        """Return the inner table and the row of each id."""
        return (self.table, self.position.index_select(0, ids)) if can_bag(self.table) else None

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the kept or fallback row of each id: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1)
        found: Tensor = self.table(self.position.index_select(0, flat)).reshape(*ids.shape, self.embedding_dim)
        return found
