"""Tables of 8, 4 or 2 bit codes on one grid a field: no scale in the rows at all.

value = step of the field * (code - 2^(bits - 1)); rows take exactly dim * bits / 8 bytes, element 0 in the low bits
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.fields import block_of, cover
from lessen.stored.kernels.rows import Stepped
from lessen.stored.kernels.sources import Source
from lessen.stored.tables import rowwise
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, gather_bytes

BLOCK = 4096
"""Ids decoded at a time."""


@stored
class StepQuantizedEmbedding(StoredEmbedding):
    """State: `codes` uint8 [rows, ceil(dim * bits / 8)] and `steps` float32 [blocks]."""

    kind = "step-quantized-embedding"
    codes: Tensor
    steps: Tensor

    def __init__(self, shape: TableShape, bits: int) -> None:
        super().__init__(shape)
        self.bits = int(checks.one_of("bits", bits, rowwise.BITS))
        self.blocks = cover(shape.segments, shape.rows)
        width = packing.row_bytes(shape.dim, self.bits)
        self.register_buffer("codes", torch.zeros(shape.rows, width, dtype=torch.uint8))
        self.register_buffer("steps", torch.zeros(len(self.blocks)))

    def extra_config(self) -> dict[str, Any]:
        """Return the number of bits."""
        return {"bits": self.bits}

    @classmethod
    def from_dense(cls, shape: TableShape, weight: Tensor, steps: Tensor, bits: int) -> StepQuantizedEmbedding:
        """Round float32 rows [rows, dim] to each block's grid; steps float32 [blocks], positive."""
        made = cls(shape, bits)
        made.steps.copy_(steps)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        each = torch.repeat_interleave(made.steps, torch.tensor([block.rows for block in made.blocks]))
        levels = torch.round(weight.detach() / each.unsqueeze(1)).clamp_(low, high) - low
        made.codes.copy_(packing.pack(levels, bits))
        return made

    def source(self) -> Source:
        """Return codes and steps."""
        return Stepped(self.codes, self.steps, tuple(block.start for block in self.blocks), self.bits)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id: [*] to float32 [*, dim], decoded in blocks that fit a core's cache."""
        flat = ids.reshape(-1)
        rows = torch.empty(len(flat), self.embedding_dim, device=self.codes.device)
        for number, part in enumerate(torch.split(flat, BLOCK)):
            rows[number * BLOCK : number * BLOCK + len(part)] = self._decode(part)
        return rows.reshape(*ids.shape, self.embedding_dim)

    def _decode(self, flat: Tensor) -> Tensor:
        levels = packing.unpack(gather_bytes(self.codes, flat), self.bits, self.embedding_dim)
        rows: Tensor = (levels.float() - 2 ** (self.bits - 1)) * self._steps_of(flat)
        return rows

    def _steps_of(self, flat: Tensor) -> Tensor:
        """Return the step of each id's field, float32 [n, 1], or [1] where there is one field."""
        if len(self.blocks) == 1:
            return self.steps
        return self.steps[block_of(flat, self.blocks)].unsqueeze(1)
