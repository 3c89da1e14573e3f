"""Tables whose rows fall into up to 16 groups, each with columns of its own; the other columns are zero.

id --(class, start)--> values [columns of the class] --> their places in [dim]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels.classed import GroupColumns
from lessen.stored.kernels.sources import Source
from lessen.stored.tables import row_classes
from lessen.stored.tables.embedding import StoredEmbedding, TableShape


@stored
class GroupColumnsEmbedding(StoredEmbedding):
    """State: `values` float32 [kept], `columns` uint8 [kinds, dim] (1: the group has it), `classes` and `starts`.

    A row costs 4 bytes a column of its group and 1 byte that says where it lies (see `row_classes`); no value has an
    index. Padding gives zeros.
    """

    kind = "group-columns-embedding"
    zero_padding = True
    values: Tensor
    columns: Tensor
    classes: Tensor
    starts: Tensor

    def __init__(self, shape: TableShape, kinds: int, kept: int) -> None:
        super().__init__(shape)
        self.kinds = checks.whole("kinds", kinds, 1, 16)
        self.kept = checks.whole("kept", kept, 0, shape.rows * shape.dim)
        blocks = row_classes.blocks_for(shape.rows)
        self.register_buffer("values", torch.zeros(self.kept))
        self.register_buffer("columns", torch.zeros(self.kinds, shape.dim, dtype=torch.uint8))
        self.register_buffer("classes", torch.zeros(blocks * row_classes.BLOCK // 2, dtype=torch.uint8))
        self.register_buffer("starts", torch.zeros(blocks, dtype=torch.int64))

    def extra_config(self) -> dict[str, Any]:
        """Return the number of groups and of values."""
        return {"kinds": self.kinds, "kept": self.kept}

    @classmethod
    def from_dense(cls, shape: TableShape, weight: Tensor, group: Tensor, columns: Tensor) -> GroupColumnsEmbedding:
        """Keep, of float32 rows [rows, dim], the columns bool [kinds, dim] of each row's group int64 [rows]."""
        mask = columns[group]
        made = cls(shape, len(columns), int(mask.sum()))
        made.values.copy_(weight.detach()[mask])
        made.columns.copy_(columns)
        classes, starts = row_classes.pack(group, columns.sum(dim=1))
        made.classes.copy_(classes)
        made.starts.copy_(starts)
        return made

    def check_values(self) -> None:
        """Refuse columns other than 0 and 1, and rows that reach beyond the values. Raises ValueError."""
        checks.within("columns", self.columns, 0, 1)
        row_classes.check(self.classes, self.starts, self.columns.long().sum(dim=1), self.num_embeddings, self.kept)

    def source(self) -> Source:
        """Return the values, the columns of each group as bits, and the classes of the rows."""
        words = -(-self.embedding_dim // 64)
        bits = torch.zeros(16, words * 64, dtype=torch.int64, device=self.columns.device)
        bits[: self.kinds, : self.embedding_dim] = self.columns
        masks = (bits.view(16, words, 64) << torch.arange(64, device=bits.device)).sum(dim=2)
        sizes = tuple(bits.sum(dim=1).tolist())
        return GroupColumns(self.values, masks, sizes, self.classes, self.starts, self.num_embeddings)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id with its zeros: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1).long()
        if self.kept == 0:
            return torch.zeros(*ids.shape, self.embedding_dim, device=ids.device)
        columns = self.columns.long()
        kind, start = row_classes.find(self.classes, self.starts, columns.sum(dim=1), flat)
        place = (columns.cumsum(1) - columns)[kind] + start.unsqueeze(1)
        seen = columns[kind].bool()
        rows = self.values[torch.where(seen, place, 0)] * seen
        return self._without_padding(ids, rows.reshape(*ids.shape, self.embedding_dim))
