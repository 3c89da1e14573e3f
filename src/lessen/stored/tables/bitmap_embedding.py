"""Tables with most single values gone: a bit for every value says whether it stayed, kept values lie in a row.

value (i, c) = values[set bits before bit i * dim + c] if that bit is set, else zero
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels.sources import Source
from lessen.stored.kernels.sparse import Bitmap
from lessen.stored.tables import ranked_bits
from lessen.stored.tables.embedding import StoredEmbedding, TableShape


@stored
class BitmapEmbedding(StoredEmbedding):
    """State: `values` float32 [kept], `words` int64 and `ranks` int32 [ceil(rows * dim / 64)] (see `ranked_bits`).

    A kept value costs 4 bytes and every place 1.5 bits. Compressed rows cost 5 bytes a value and 4 a row, so at 16
    columns this form is smaller at every density. Lookups gather one value for every place without the extra `kernels`.
    """

    kind = "bitmap-embedding"
    values: Tensor
    words: Tensor
    ranks: Tensor

    def __init__(self, shape: TableShape, kept: int) -> None:
        super().__init__(shape)
        self.kept = checks.whole("kept", kept, 0, min(shape.rows * shape.dim, 2**31 - 1))
        words = ranked_bits.words_for(shape.rows * shape.dim)
        self.register_buffer("values", torch.zeros(self.kept))
        self.register_buffer("words", torch.zeros(words, dtype=torch.int64))
        self.register_buffer("ranks", torch.zeros(words, dtype=torch.int32))

    def extra_config(self) -> dict[str, Any]:
        """Return the number of kept values."""
        return {"kept": self.kept}

    @classmethod
    def from_dense(cls, shape: TableShape, weight: Tensor, mask: Tensor) -> BitmapEmbedding:
        """Keep the values of float32 rows [rows, dim] where `mask`, bool [rows, dim], is set."""
        made = cls(shape, int(mask.sum()))
        made.values.copy_(weight.detach()[mask])
        words, ranks = ranked_bits.pack(mask.reshape(-1))
        made.words.copy_(words)
        made.ranks.copy_(ranks)
        return made

    def check_values(self) -> None:
        """Refuse bits that do not mark as many places as there are values. Raises ValueError."""
        ranked_bits.check(self.words, self.ranks, self.num_embeddings * self.embedding_dim, self.kept)

    def source(self) -> Source:
        """Return values and bits."""
        return Bitmap(self.values, self.words, self.ranks, self.num_embeddings, self.embedding_dim)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id with its zeros: [*] to float32 [*, dim]."""
        columns = torch.arange(self.embedding_dim, device=ids.device)
        positions = ids.long().unsqueeze(-1) * self.embedding_dim + columns
        if self.kept == 0:
            return torch.zeros(positions.shape, device=ids.device)
        member, rank = ranked_bits.find(self.words, self.ranks, positions)
        found = self.values[rank.clamp_(max=self.kept - 1)]
        return found * member
