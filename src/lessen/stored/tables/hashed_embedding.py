"""Hashed tables: ids of a field share fewer rows, each id reading one row or the mean of several.

id --segment--> h_1(id), ..., h_k(id) --> rows of that field's share of one table --> mean of k (signed) rows
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks, hashing
from lessen.stored.base import stored
from lessen.stored.fields import cover, located
from lessen.stored.kernels.hashes import Hashed
from lessen.stored.kernels.sources import Source
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, can_bag, inner_table, source_of


@stored
class HashedEmbedding(StoredEmbedding):
    """State: `table` (an `nn.Embedding` of the shared rows) and `constants` int64 [blocks, k, 4] (a, b, sign a, b).

    Constants with a = 0 mean the remainder of the id. A block is a field, or a run of rows that belongs to none; a
    block with as many buckets as rows is exact (identity hash), so that small fields and the padding row keep rows of
    their own. Ids behind the last are accepted: new ids of the last field work at once.
    """

    any_id = True
    kind = "hashed-embedding"
    zero_padding = True
    constants: Tensor
    table: nn.Module

    def __init__(self, shape: TableShape, buckets: list[int], hashes: int, signed: bool) -> None:
        super().__init__(shape)
        self.blocks = cover(shape.segments, shape.rows)
        if not isinstance(buckets, list) or len(buckets) != len(self.blocks):
            raise ValueError(f"buckets must list {len(self.blocks)} sizes, one a field or gap, found {buckets!r}")
        self.buckets = [
            checks.whole("buckets", size, 1, block.rows) for size, block in zip(buckets, self.blocks, strict=True)
        ]
        self.hashes = checks.whole("hashes", hashes, 1, 8)
        self.signed = bool(checks.one_of("signed", signed, (False, True)))
        self.table = inner_table(sum(self.buckets), shape.dim)
        self.register_buffer("constants", torch.zeros(len(self.blocks), self.hashes, 4, dtype=torch.int64))

    def extra_config(self) -> dict[str, Any]:
        """Return the buckets of each block, the number of hashes and whether rows carry a sign."""
        return {"buckets": list(self.buckets), "hashes": self.hashes, "signed": self.signed}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator, modulo: bool = True) -> None:
        """Draw hash constants and rows; `std` is that of the table replaced, kept by the mean of k rows.

        `modulo`: the first hash is `id mod buckets`, a balanced partition of dense ids; others are random.
        """
        shape = (len(self.blocks), self.hashes, 4)
        drawn = torch.randint(0, hashing.PRIME, shape, generator=generator)
        drawn[..., 0::2].clamp_(min=1)
        if modulo:
            drawn[:, 0, :2] = 0
        if not self.signed:
            drawn[..., 2:] = 0
        exact = torch.tensor([size == block.rows for size, block in zip(self.buckets, self.blocks, strict=True)])
        drawn[exact] = 0
        self.constants.copy_(drawn)
        scale = torch.full((sum(self.buckets), 1), std * math.sqrt(self.hashes))
        for block, is_exact in enumerate(exact.tolist()):
            if is_exact:
                first = sum(self.buckets[:block])
                scale[first : first + self.buckets[block]] = std
        rows = torch.randn(sum(self.buckets), self.embedding_dim, generator=generator) * scale
        self.table = inner_table(len(rows), self.embedding_dim, rows)

    def check_values(self) -> None:
        """Refuse constants that are no residues of the hash. Raises ValueError."""
        hashing.check("constants", self.constants)

    def rows_of(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows of the inner table that each id reads, int64 [*, k], and their signs (or None)."""
        ids = ids.long()
        own, size, first, constants = self._geometry(ids)
        a, b, c, d = constants.unbind(-1)
        remainders, hashes = bool((self.constants[..., 0] == 0).any()), bool((self.constants[..., 0] != 0).any())
        rows = torch.remainder(own.unsqueeze(-1), size) if remainders else own.unsqueeze(-1)
        if hashes:
            x = hashing.residue(own).unsqueeze(-1)
            hashed = hashing.into(hashing.mixed(x, a, b), size)
            rows = torch.where(a == 0, rows, hashed) if remainders else hashed
        rows = rows if len(self.blocks) == 1 else rows + first
        if not self.signed:
            return rows, None
        return rows, 1.0 - 2.0 * (hashing.mixed(hashing.residue(own).unsqueeze(-1), c, d) & 1).float()

    def _geometry(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ids inside their block [*], buckets and first bucket [*, 1], constants [*, k, 4], int64.

        The last three have one row that stands for all ids if there is one block.
        """
        sizes = torch.tensor(self.buckets, device=ids.device)
        if len(self.blocks) == 1:
            return ids, sizes, torch.zeros_like(sizes), self.constants[0]
        block, own = located(ids, self.blocks)
        firsts = sizes.cumsum(0) - sizes
        return own, sizes[block].unsqueeze(-1), firsts[block].unsqueeze(-1), self.constants[block]

    def source(self) -> Source | None:
        """Return the hashes and the shared rows."""
        table = source_of(self.table)
        starts = tuple(block.start for block in self.blocks)
        return None if table is None else Hashed(self.constants, table, starts, tuple(self.buckets), self.signed)

    def gathered(self, ids: Tensor) -> tuple[nn.Module, Tensor] | None:
        """Return the shared rows and the row of each id, where each id reads one."""
        if self.hashes > 1 or self.signed or not can_bag(self.table):
            return None
        return self.table, self.rows_of(ids)[0].squeeze(-1)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the mean of the k rows of each id: [*] to float32 [*, dim]; padding gives zeros."""
        rows, signs = self.rows_of(ids)
        found = self.table(rows)
        if signs is not None:
            found = found * signs.unsqueeze(-1)
        result: Tensor = found.squeeze(-2) if self.hashes == 1 else found.mean(dim=-2)
        return self._without_padding(ids, result)
