"""Tables whose rows have 0 to 8 bits a value: frequent rows many, rare ones few, the rarest none at all.

value = (code + lowest code of b bits) * step of b bits + offset of the column; rows of 0 bits are zero
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels.classed import MixedBits
from lessen.stored.kernels.sources import Source
from lessen.stored.tables import row_classes
from lessen.stored.tables.embedding import StoredEmbedding, TableShape

MOST_BITS = 8


def lowest(bits: int) -> int:
    """Return the lowest code of signed codes of `bits` bits, zero or negative."""
    return -(2 ** (bits - 1)) if bits else 0


@stored
class MixedBitsEmbedding(StoredEmbedding):
    """State: `packed` uint8 [bytes], `classes` and `starts` (see `row_classes`; the class of a row is its bits),
    `steps` float32 [9], one for each number of bits, and `offset` float32 [dim].

    Codes of a row follow one another without gaps, low bits first. Padding gives zeros.
    """

    kind = "mixed-bits-embedding"
    zero_padding = True
    packed: Tensor
    classes: Tensor
    starts: Tensor
    steps: Tensor
    offset: Tensor

    def __init__(self, shape: TableShape, size: int) -> None:
        super().__init__(shape)
        self.size = checks.whole("size", size, 0, shape.rows * packing.row_bytes(shape.dim, MOST_BITS))
        blocks = row_classes.blocks_for(shape.rows)
        self.register_buffer("packed", torch.zeros(self.size, dtype=torch.uint8))
        self.register_buffer("classes", torch.zeros(blocks * row_classes.BLOCK // 2, dtype=torch.uint8))
        self.register_buffer("starts", torch.zeros(blocks, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros(MOST_BITS + 1))
        self.register_buffer("offset", torch.zeros(shape.dim))

    def extra_config(self) -> dict[str, Any]:
        """Return the bytes of all codes."""
        return {"size": self.size}

    @classmethod
    def from_dense(
        cls, shape: TableShape, weight: Tensor, bits: Tensor, steps: Tensor, offset: Tensor
    ) -> MixedBitsEmbedding:
        """Round float32 rows [rows, dim] to `bits` [rows] each; steps float32 [9], positive, offset float32 [dim]."""
        sizes = _sizes(shape.dim)
        classes, starts = row_classes.pack(bits, sizes)
        made = cls(shape, int(sizes[bits.long()].sum()))
        for buffer, value in ((made.classes, classes), (made.starts, starts), (made.steps, steps)):
            buffer.copy_(value)
        made.offset.copy_(offset)
        _, places = row_classes.find(classes, starts, sizes, torch.arange(shape.rows))
        for width in range(1, MOST_BITS + 1):
            members = (bits == width).nonzero()[:, 0]
            if len(members):
                levels = ((weight[members] - offset) / steps[width]).round().clamp_(lowest(width), -lowest(width) - 1)
                rows = packing.pack(levels - lowest(width), width)
                made.packed[places[members].unsqueeze(1) + torch.arange(rows.shape[1])] = rows
        return made

    def check_values(self) -> None:
        """Refuse rows of more than 8 bits, and rows that reach beyond the codes. Raises ValueError."""
        row_classes.check(self.classes, self.starts, _sizes(self.embedding_dim), self.num_embeddings, self.size)

    def source(self) -> Source:
        """Return codes, classes, steps and offset."""
        sizes = tuple(packing.row_bytes(self.embedding_dim, bits) for bits in range(MOST_BITS + 1))
        return MixedBits(self.packed, self.classes, self.starts, self.steps, self.offset, sizes, self.num_embeddings)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1).long()
        sizes = _sizes(self.embedding_dim).to(ids.device)
        bits, places = row_classes.find(self.classes, self.starts, sizes, flat)
        rows = torch.zeros(len(flat), self.embedding_dim, device=ids.device)
        for width in range(1, MOST_BITS + 1):
            members = (bits == width).nonzero()[:, 0]
            if len(members):
                columns = torch.arange(packing.row_bytes(self.embedding_dim, width), device=ids.device)
                raw = self.packed[places[members].unsqueeze(1) + columns]
                levels = packing.unpack(raw, width, self.embedding_dim).float() + lowest(width)
                rows[members] = levels * self.steps[width] + self.offset
        return self._without_padding(ids, rows.reshape(*ids.shape, self.embedding_dim))


def _sizes(dim: int) -> Tensor:
    return torch.tensor([packing.row_bytes(dim, bits) for bits in range(MOST_BITS + 1)])
