"""Tables with most single values gone: compressed rows, one byte a column number.

row i = values[start[i] : start[i + 1]] at columns[start[i] : start[i + 1]], zero elsewhere
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.tables.embedding import StoredEmbedding, TableShape


@stored
class SparseEmbedding(StoredEmbedding):
    """State: `values` float32 [kept], `columns` uint8 or, beyond 256 columns, int16 [kept], `starts` int32 [rows + 1].

    A kept value costs 5 or 6 bytes and a row 4: at 16 columns that equals an int8 row at 75 % sparsity. Lookups gather
    and scatter; there is no kernel for them.
    """

    kind = "sparse-embedding"
    values: Tensor
    columns: Tensor
    starts: Tensor

    def __init__(self, shape: TableShape, kept: int) -> None:
        super().__init__(shape)
        checks.whole("dim", shape.dim, 1, 2**15)  # columns are numbered in two bytes at most
        self.kept = checks.whole("kept", kept, 0, min(shape.rows * shape.dim, 2**31 - 1))
        self.register_buffer("values", torch.zeros(self.kept))
        kind = torch.uint8 if shape.dim <= 256 else torch.int16
        self.register_buffer("columns", torch.zeros(self.kept, dtype=kind))
        self.register_buffer("starts", torch.zeros(shape.rows + 1, dtype=torch.int32))

    def extra_config(self) -> dict[str, Any]:
        """Return the number of kept values."""
        return {"kept": self.kept}

    @classmethod
    def from_dense(cls, shape: TableShape, weight: Tensor) -> SparseEmbedding:
        """Keep the values of float32 rows [rows, dim] that are not zero."""
        weight = weight.detach()
        rows, columns = weight.nonzero(as_tuple=True)
        made = cls(shape, len(rows))
        made.values.copy_(weight[rows, columns])
        made.columns.copy_(columns)
        made.starts[1:] = torch.bincount(rows, minlength=shape.rows).cumsum(0)
        return made

    def check_values(self) -> None:
        """Refuse rows that do not follow one another, and columns beyond the width. Raises ValueError."""
        checks.within("columns", self.columns, 0, self.embedding_dim - 1)
        if (
            int(self.starts[0]) != 0
            or int(self.starts[-1]) != self.kept
            or bool((self.starts[1:] < self.starts[:-1]).any())
        ):
            raise ValueError(f"starts must rise from 0 to {self.kept}")
        wide = self.starts[1:].long() - self.starts[:-1]
        checks.within("values of a row", wide, 0, self.embedding_dim)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id with its zeros: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1).long()
        first = self.starts[flat].long()
        count = self.starts[flat + 1].long() - first
        place = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), count)
        before = count.cumsum(0) - count
        source = torch.arange(len(place), device=flat.device) - before[place] + first[place]
        rows = self.values.new_zeros(len(flat), self.embedding_dim)
        rows[place, self.columns[source].long()] = self.values[source]
        return rows.reshape(*ids.shape, self.embedding_dim)
