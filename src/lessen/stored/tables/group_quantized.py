"""A table whose rows are packed codes of 2 to 8 bits with 16 bit scales for groups of columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.linears.group_grid import WIDTHS, GroupGrid, group_count
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.tables.embedding import StoredEmbedding, TableShape


@stored
class GroupQuantizedEmbedding(StoredEmbedding):
    """State as of `GroupQuantizedLinear`: `codes` uint8 [rows, bytes], `scales` and `minimums` fp16 [rows, groups].

    A lookup decodes the rows that it is asked for. A head that is tied to the table holds the very same tensors, which
    an artifact stores once.
    """

    kind = "group-quantized-embedding"
    codes: Tensor
    scales: Tensor
    minimums: Tensor | None

    def __init__(self, shape: TableShape, bits: int, group: int, symmetric: bool = False) -> None:
        super().__init__(shape)
        self.bits: int = checks.one_of("bits", bits, WIDTHS)
        self.group = checks.whole("group", group, 1, self.embedding_dim)
        self.symmetric = bool(checks.one_of("symmetric", symmetric, (True, False)))
        rows, groups = self.num_embeddings, group_count(self.embedding_dim, self.group)
        packed = packing.row_bytes(self.embedding_dim, self.bits)
        self.register_buffer("codes", torch.zeros(rows, packed, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(rows, groups, dtype=torch.float16))
        self.register_buffer("minimums", None if symmetric else torch.zeros(rows, groups, dtype=torch.float16))

    def extra_config(self) -> dict[str, Any]:
        """Return the bits of a code, the columns of a group, and whether there are no minimums."""
        return {"bits": self.bits, "group": self.group, "symmetric": self.symmetric}

    @staticmethod
    def sharing(shape: TableShape, linear: GroupQuantizedLinear, factor: float = 1.0) -> GroupQuantizedEmbedding:
        """Return a table over the tensors of a layer [rows, dim], which both hold from then on.

        Args:
            factor: of every row that is looked up.
        """
        given = (shape, linear.bits, linear.group, linear.symmetric)
        with torch.device("meta"):
            scaled = factor != 1.0
            made = ScaledGroupQuantizedEmbedding(*given, factor) if scaled else GroupQuantizedEmbedding(*given)
        for name in made._buffers:
            made._buffers[name] = linear._buffers[name]
        return made

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1).long()
        minimums = None if self.minimums is None else self.minimums[flat]
        grid = GroupGrid(self.bits, self.group, self.scales[flat], minimums)
        codes = packing.unpack(self.codes[flat], self.bits, self.embedding_dim)
        return grid.values(codes).view(*ids.shape, self.embedding_dim)

    def check_values(self) -> None:
        """Refuse scales and minimums that are not finite; every code is a level. Raises ValueError."""
        for name, tensor in (("scales", self.scales), ("minimums", self.minimums)):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} hold NaN or infinity")


@stored
class ScaledGroupQuantizedEmbedding(GroupQuantizedEmbedding):
    """The same for a table whose forward multiplies its rows, as Gemma's does; a tied head reads them as they are."""

    kind = "scaled-group-quantized-embedding"

    def __init__(self, shape: TableShape, bits: int, group: int, symmetric: bool = False, factor: float = 1.0) -> None:
        super().__init__(shape, bits, group, symmetric)
        self.factor: float = checks.number("factor", factor)

    def extra_config(self) -> dict[str, Any]:
        """Return what the codes are, and the factor of every row that is looked up."""
        return {**super().extra_config(), "factor": self.factor}

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id times the factor: [*] to float32 [*, dim]."""
        return super().lookup(ids) * self.factor

    def dequantise(self) -> Tensor:
        """Return the rows that a tied head reads, float32 [rows, dim]."""
        with torch.no_grad():
            return super().lookup(torch.arange(self.num_embeddings, device=self.codes.device))
