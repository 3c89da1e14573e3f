"""Ids below zero count from the end of a table, as indexing counts them and a look-up does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored


@stored
class SignedIds(StoredModule):
    """Holds no tensor: ids from -rows to -1 become those of the last rows; all others are given on as they are.

    Stands before the table of a part that indexed its rows (`features[ids]`), so that it answers what that did, and
    what that refused is refused by the table.
    """

    kind = "signed-ids"

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = checks.whole("rows", rows, 1)

    def config(self) -> dict[str, Any]:
        """Return the number of rows."""
        return {"rows": self.rows}

    def forward(self, ids: Tensor) -> Tensor:
        """Return ids [*] of the same type, none of those that the table has below zero."""
        return torch.where(ids < 0, ids + self.rows, ids)

    def dequantise(self) -> Tensor:
        """Return no weight, float32 [0]."""
        return torch.zeros(0)
