"""A table of 16 bit rows (fp16 or bf16) that answers in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels.rows import Floats
from lessen.stored.kernels.sources import Source
from lessen.stored.tables.embedding import StoredEmbedding, TableShape

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@stored
class HalfEmbedding(StoredEmbedding):
    """State: `rows` [rows, dim] fp16 or bf16. Rows are widened after the lookup, so sums are float32."""

    kind = "half-embedding"
    rows: Tensor

    def __init__(self, shape: TableShape, dtype: str) -> None:
        super().__init__(shape)
        self.dtype = str(checks.one_of("dtype", dtype, tuple(DTYPES)))
        self.register_buffer("rows", torch.zeros(shape.rows, shape.dim, dtype=DTYPES[self.dtype]))

    def extra_config(self) -> dict[str, Any]:
        """Return the name of the 16 bit type."""
        return {"dtype": self.dtype}

    @classmethod
    def from_dense(cls, table: nn.Module, dtype: str) -> HalfEmbedding:
        """Round a table to 16 bits, half to even. Raises ValueError when a value overflows fp16."""
        made = cls(TableShape.of(table), dtype)
        made.rows.copy_(table.weight.detach())  # type: ignore[operator]
        if not bool(torch.isfinite(made.rows).all()):
            raise ValueError("values beyond 65504 do not fit fp16; use bf16")
        return made

    def source(self) -> Source:
        """Return the rows."""
        return Floats(self.rows)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id: [*] to float32 [*, dim]."""
        return functional.embedding(ids, self.rows).float()
