"""Tables whose fields have rows of different widths, each projected back to the common width.

id --field--> narrow row [w of the field] --(x) projection of the field [w, d]--> [d]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.fields import Segment, cover, located
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table


@stored
class MixedWidthEmbedding(StoredEmbedding):
    """State: one `nn.Embedding` and one projection tensor [blocks, width, dim] for each distinct width.

    Blocks of full width have no projection. Padding gives zeros.
    """

    kind = "mixed-width-embedding"
    zero_padding = True

    def __init__(self, shape: TableShape, widths: list[int]) -> None:
        super().__init__(shape)
        self.blocks = cover(shape.segments, shape.rows)
        if not isinstance(widths, list) or len(widths) != len(self.blocks):
            raise ValueError(f"widths must list {len(self.blocks)} numbers, found {widths!r}")
        self.widths = [checks.whole("widths", width, 1, shape.dim) for width in widths]
        self.distinct = sorted(set(self.widths))
        self.tables = nn.ModuleList()
        self.projections = nn.ParameterList()
        for width in self.distinct:
            members = self.members(width)
            self.tables.append(inner_table(sum(block.rows for _, block in members), width))
            if width < shape.dim:
                self.projections.append(nn.Parameter(torch.zeros(len(members), width, shape.dim)))

    def members(self, width: int) -> list[tuple[int, Segment]]:
        """Return the blocks of one width, with their numbers, in the order of their rows."""
        return [(n, block) for n, block in enumerate(self.blocks) if self.widths[n] == width]

    def extra_config(self) -> dict[str, Any]:
        """Return the width of each block."""
        return {"widths": list(self.widths)}

    @torch.no_grad()
    def fill(self, block: int, rows: Tensor, projection: Tensor | None) -> None:
        """Set the rows [rows, width] and the projection [width, dim] of one block."""
        width = self.widths[block]
        members = [number for number, _ in self.members(width)]
        place, group = members.index(block), self.distinct.index(width)
        first = sum(self.blocks[number].rows for number in members[:place])
        table = self.tables[group]
        assert isinstance(table, nn.Embedding)
        table.weight[first : first + len(rows)] = rows
        if projection is not None:
            self.projections[group][place] = projection

    def _where(self, device: torch.device) -> Tensor:
        """Return for each block its width group, first row in that group's table and place, int64 [blocks, 3]."""
        found = torch.zeros(len(self.blocks), 3, dtype=torch.int64)
        for group, width in enumerate(self.distinct):
            first = 0
            for place, (number, block) in enumerate(self.members(width)):
                found[number] = torch.tensor([group, first, place])
                first += block.rows
        return found.to(device)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the projected row of each id: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1).long()
        block, own = located(flat, self.blocks)
        group, first, place = self._where(flat.device)[block].unbind(1)
        row = first + own
        result = torch.zeros(len(flat), self.embedding_dim, device=flat.device)
        for number, width in enumerate(self.distinct):
            chosen = (group == number).nonzero()[:, 0]
            found = self.tables[number](row[chosen])
            if width < self.embedding_dim:
                found = torch.bmm(found.unsqueeze(1), self.projections[number][place[chosen]]).squeeze(1)
            result = result.index_copy(0, chosen, found)
        return self._without_padding(ids, result.reshape(*ids.shape, self.embedding_dim))
