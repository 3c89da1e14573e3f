"""Tables that lost rows and columns: a bit for every row, and for each field as many columns as it is wide.

id --bit set?--> rank among kept rows --field's width w--> values [w] followed by zeros [dim - w]; zeros if not set
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.fields import block_of, cover
from lessen.stored.kernels.sources import Source
from lessen.stored.kernels.sparse import Narrow
from lessen.stored.tables import ranked_bits
from lessen.stored.tables.embedding import StoredEmbedding, TableShape


@stored
class NarrowRowsEmbedding(StoredEmbedding):
    """State: `values` float32 [sum of kept * width over blocks], `words` and `ranks` over rows (see `ranked_bits`).

    Rows of a block lie one after another, in the order of their ids, without the columns that the block gave up.
    """

    kind = "narrow-rows-embedding"
    values: Tensor
    words: Tensor
    ranks: Tensor

    def __init__(self, shape: TableShape, widths: list[int], kept: list[int]) -> None:
        super().__init__(shape)
        self.blocks = cover(shape.segments, shape.rows)
        for name, numbers in (("widths", widths), ("kept", kept)):
            if not isinstance(numbers, list) or len(numbers) != len(self.blocks):
                raise ValueError(f"{name} must list {len(self.blocks)} numbers, found {numbers!r}")
        self.widths = [checks.whole("widths", width, 1, shape.dim) for width in widths]
        self.kept = [checks.whole("kept", count, 0, b.rows) for count, b in zip(kept, self.blocks, strict=True)]
        values = sum(count * width for count, width in zip(self.kept, self.widths, strict=True))
        words = ranked_bits.words_for(shape.rows)
        self.register_buffer("values", torch.zeros(values))
        self.register_buffer("words", torch.zeros(words, dtype=torch.int64))
        self.register_buffer("ranks", torch.zeros(words, dtype=torch.int32))

    def extra_config(self) -> dict[str, Any]:
        """Return the width of each block and how many rows it kept."""
        return {"widths": list(self.widths), "kept": list(self.kept)}

    @classmethod
    def from_dense(cls, shape: TableShape, weight: Tensor, rows: Tensor, widths: list[int]) -> NarrowRowsEmbedding:
        """Keep the rows where `rows`, bool [rows], is set, of float32 rows [rows, dim], at the width of their block."""
        parts = [slice(block.start, block.start + block.rows) for block in cover(shape.segments, shape.rows)]
        made = cls(shape, widths, [int(rows[part].sum()) for part in parts])
        kept = [weight[part][rows[part]][:, :width].reshape(-1) for part, width in zip(parts, widths, strict=True)]
        made.values.copy_(torch.cat(kept).detach())
        words, ranks = ranked_bits.pack(rows)
        made.words.copy_(words)
        made.ranks.copy_(ranks)
        return made

    def check_values(self) -> None:
        """Refuse bits that do not mark as many rows of each block as it kept. Raises ValueError."""
        ranked_bits.check(self.words, self.ranks, self.num_embeddings, sum(self.kept))
        ends = torch.tensor([block.start for block in self.blocks][1:], dtype=torch.int64, device=self.words.device)
        before = torch.tensor(self.kept, device=self.words.device).cumsum(0)[:-1]
        if not torch.equal(ranked_bits.find(self.words, self.ranks, ends)[1], before):
            raise ValueError("words does not mark as many rows of each field as the configuration says")

    def _blocks(self, device: torch.device) -> Tensor:
        """Return for each block its width, first rank and first value, int64 [blocks, 3]."""
        found, rank, value = [], 0, 0
        for width, count in zip(self.widths, self.kept, strict=True):
            found.append((width, rank, value))
            rank, value = rank + count, value + count * width
        return torch.tensor(found, device=device)

    def source(self) -> Source:
        """Return values and bits."""
        starts = tuple(block.start for block in self.blocks)
        sizes = (tuple(self.widths), tuple(self.kept))
        return Narrow(self.values, self.words, self.ranks, self.num_embeddings, starts, *sizes)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id with its zeros: [*] to float32 [*, dim]."""
        ids = ids.long()
        if len(self.values) == 0:
            return torch.zeros(*ids.shape, self.embedding_dim, device=ids.device)
        width, first_rank, first_value = self._blocks(ids.device)[block_of(ids, self.blocks)].unbind(-1)
        member, rank = ranked_bits.find(self.words, self.ranks, ids)
        columns = torch.arange(self.embedding_dim, device=ids.device)
        seen = (columns < width.unsqueeze(-1)) & member.unsqueeze(-1)
        first = first_value + (rank - first_rank) * width
        return self.values[torch.where(seen, first.unsqueeze(-1) + columns, 0)] * seen
