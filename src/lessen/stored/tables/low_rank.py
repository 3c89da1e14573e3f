"""Low-rank tables: narrow rows with a decoder for each field."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.fields import block_of, cover
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table


@stored
class LowRankEmbedding(StoredEmbedding):
    """State: `table` (`nn.Embedding` [rows, rank]), `decoder` [blocks, rank, dim] and `mean` [blocks, dim].

    vector = table[id] @ decoder[field of id] + mean[field of id]. A block is a field or a run of rows in none.
    """

    kind = "low-rank-embedding"

    def __init__(self, shape: TableShape, rank: int) -> None:
        super().__init__(shape)
        self.rank = checks.whole("rank", rank, 1, shape.dim)
        self.blocks = cover(shape.segments, shape.rows)
        self.table = inner_table(shape.rows, self.rank)
        self.decoder = nn.Parameter(torch.zeros(len(self.blocks), self.rank, shape.dim))
        self.mean = nn.Parameter(torch.zeros(len(self.blocks), shape.dim))

    def extra_config(self) -> dict[str, Any]:
        """Return the rank."""
        return {"rank": self.rank}

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the decoded row of each id: [*] to float32 [*, dim]."""
        codes: Tensor = self.table(ids)
        if len(self.blocks) == 1:
            return functional.linear(codes, self.decoder[0].t(), self.mean[0])
        block = block_of(ids.reshape(-1), self.blocks)
        wide = torch.bmm(codes.reshape(-1, 1, self.rank), self.decoder[block]).squeeze(1) + self.mean[block]
        return wide.reshape(*ids.shape, self.embedding_dim)
