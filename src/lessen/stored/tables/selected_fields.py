"""The field vectors of a click model that reads only some of its columns: fewer lookups, a smaller table, no map.

ids [B, columns] -> pick kept columns -> subtract one offset a column -> small table -> vectors [B, fields, d]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.fields import FieldEmbedding, Segment, masked_mean


@stored
class SelectedFields(StoredModule):
    """State: `table`, `pick` int64 and `shift` int32 [kept columns], `values` and `numbers` for numeric fields.

    Ids are those of the full vocabulary; the fields that are left out are neither looked up nor stored.

    Args:
        columns: width of the full id matrix.
        sections: [width, pooled] of neighbouring kept columns; pooled ones become the mean over ids > 0.
        segments: [name, start, rows] of the small table.
        dim: width of the vectors.
        numeric: numeric columns kept.
    """

    kind = "selected-fields"
    pick: Tensor
    shift: Tensor
    numbers: Tensor

    def __init__(
        self, columns: int, sections: Sequence[Sequence[Any]], segments: Sequence[Any], dim: int, numeric: int = 0
    ) -> None:
        super().__init__()
        self.columns = checks.whole("columns", columns, 1, 2**20)
        self.sections = [
            (checks.whole("section width", width, 1, 2**20), bool(checks.one_of("pooled", pooled, (False, True))))
            for width, pooled in sections
        ]
        rows = max(
            (checks.whole("rows", item[1], 0) + checks.whole("rows", item[2], 1) for item in segments), default=1
        )
        self.dim = checks.whole("dim", dim, 1, 2**20)
        checks.elements("a table", rows, self.dim)
        self.segments = checks.segments(list(segments), rows)
        self.table = FieldEmbedding(self.segments or (Segment("none", 0, 1),), self.dim)
        width = sum(section[0] for section in self.sections)
        self.numeric = checks.whole("numeric", numeric, 0, 2**20)
        self.register_buffer("pick", torch.zeros(width, dtype=torch.int64))
        self.register_buffer("shift", torch.zeros(width, dtype=torch.int32))
        self.register_buffer("numbers", torch.zeros(self.numeric, dtype=torch.int64))
        self.values = nn.Parameter(torch.zeros(self.numeric, self.dim)) if self.numeric else None

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON values."""
        return {
            "columns": self.columns,
            "sections": [list(section) for section in self.sections],
            "segments": [list(segment) for segment in self.segments],
            "dim": self.dim,
            "numeric": self.numeric,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SelectedFields:
        """Build an empty twin. Raises ValueError or TypeError for values that make no sense."""
        return cls(**config)

    def check_values(self) -> None:
        """Refuse columns that are not in the full matrix. Raises ValueError."""
        checks.within("pick", self.pick, 0, self.columns - 1)
        checks.within("shift", self.shift, 0, 2**31 - 1)
        checks.within("numbers", self.numbers, 0, 2**31 - 1)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return [B, fields, d] float32 for the full `ids` [B, columns] and `numeric` [B, n]."""
        chosen = ids.index_select(1, self.pick)
        local = (chosen - self.shift).clamp(min=0)  # padding is 0 in every column
        widths = [width for width, _ in self.sections]
        rows = torch.split(self.table(local), widths, dim=1)
        masks = torch.split(local > 0, widths, dim=1)
        parts = [part for part, (_, pooled) in zip(rows, self.sections, strict=True) if not pooled]
        for part, mask, (_, pooled) in zip(rows, masks, self.sections, strict=True):
            if pooled:
                parts.append(masked_mean(part, mask).unsqueeze(1))
        if self.values is not None:
            if numeric is None:
                raise ValueError("the model needs numeric inputs")
            parts.append(numeric.index_select(1, self.numbers).unsqueeze(2) * self.values)
        return torch.cat(parts, dim=1)

    def dequantise(self) -> Tensor:
        """Return the table of the kept fields, float32."""
        return self.table.weight.detach().float()
