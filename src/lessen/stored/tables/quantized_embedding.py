"""A table of 8, 4 or 2 bit rows, each with its own scale and bias, looked up by torch's quantised operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels.rows import Codes
from lessen.stored.kernels.sources import Source
from lessen.stored.tables import rowwise
from lessen.stored.tables.embedding import StoredEmbedding, TableShape


@stored
class QuantizedEmbedding(StoredEmbedding):
    """Row-wise quantised table; state: `packed` uint8 [rows, bytes of a row] in torch's layout (see `rowwise`).

    Serving runs on the packed bytes: no dense copy is ever made. Bags: sum, mean and weighted sum. No gradients.
    Torch's operators run on the CPU; on other devices the rows of a batch are gathered and unpacked.
    """

    kind = "quantized-embedding"
    packed: Tensor

    def __init__(self, shape: TableShape, bits: int) -> None:
        super().__init__(shape)
        if shape.mode == "max":
            raise ValueError("a quantised table cannot pool by max: torch's operator silently sums instead")
        self.bits = int(checks.one_of("bits", bits, rowwise.BITS))
        width = rowwise.row_bytes(shape.dim, self.bits)
        self.register_buffer("packed", torch.zeros(shape.rows, width, dtype=torch.uint8))

    def extra_config(self) -> dict[str, Any]:
        """Return the number of bits."""
        return {"bits": self.bits}

    @classmethod
    def from_dense(cls, table: nn.Module, bits: int, ranges: rowwise.Ranges = "plain") -> QuantizedEmbedding:
        """Quantise the rows of an `nn.Embedding` or `nn.EmbeddingBag`.

        Raises:
            ValueError: bits not 8, 4 or 2; pooling by max; a range that the row parameters cannot hold.
        """
        made = cls(TableShape.of(table), bits)
        weight: Tensor = table.weight.detach().float()  # type: ignore[operator]
        if made.mode is not None and made.padding_idx is not None:
            # padding never enters a bag; as a zero row it may stay in the sum
            weight = weight.clone()
            weight[made.padding_idx] = 0.0
        made.packed.copy_(rowwise.pack(weight, bits, ranges))
        return made

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id: int32 or int64 [*] to float32 [*, dim]; each lookup is a bag of one."""
        if not self.packed.is_cpu:
            return rowwise.unpack(self.packed[ids.reshape(-1)], self.embedding_dim, self.bits).reshape(*ids.shape, -1)
        flat = ids.reshape(-1)
        bags = torch.arange(flat.numel(), dtype=flat.dtype)
        return self._trim(rowwise.look_up(self.packed, self.bits, flat, bags)).reshape(*ids.shape, self.embedding_dim)

    def source(self) -> Source:
        """Return the packed rows."""
        return Codes(self.packed, self.bits)

    def bagged(self, ids: Tensor, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return sums or means of bags [bags, dim] by torch's quantised operators, which run on the CPU."""
        if weights is not None and self.mode != "sum":
            raise ValueError(f"per_sample_weights need mode 'sum', this table pools by {self.mode!r}")
        if not self.packed.is_cpu:
            return self._pool(flat, starts, weights)
        total = self.bags(flat, starts, weights, self.include_last_offset)
        return total / self._lengths(flat, starts).clamp_(min=1) if self.mode == "mean" else total

    def bags(self, flat: Tensor, offsets: Tensor, weights: Tensor | None, last: bool) -> Tensor:
        """Return (weighted) sums of bags [bags, dim]: flat ids [n], offsets of the same integer type."""
        weights = None if weights is None else weights.float()
        return self._trim(rowwise.look_up(self.packed, self.bits, flat, offsets, weights, last))

    def _lengths(self, flat: Tensor, offsets: Tensor) -> Tensor:
        """Return the number of ids in each bag that are not padding, float32 [bags, 1]."""
        ends = offsets if self.include_last_offset else torch.cat([offsets, offsets.new_tensor([flat.numel()])])
        counted = torch.ones_like(flat) if self.padding_idx is None else (flat != self.padding_idx).to(flat.dtype)
        running = torch.cat([counted.new_zeros(1), counted.cumsum(0)])
        return (running[ends[1:].long()] - running[ends[:-1].long()]).float().unsqueeze(1)

    def _trim(self, rows: Tensor) -> Tensor:
        return rows if rows.shape[1] == self.embedding_dim else rows[:, : self.embedding_dim].contiguous()
