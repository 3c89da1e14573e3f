"""Hashed tables: ids of a field share fewer rows, each id reading one row or the mean of several.

id --segment--> h_1(id), ..., h_k(id) --> rows of that field's share of one table --> mean of k (signed) rows
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.fields import cover

PRIME = 2**31 - 1
"""Modulus of the Carter-Wegman hash ((a x + b) mod p) mod m: a product of two residues fits int64."""


@stored
class HashedEmbedding(StoredEmbedding):
    """State: `table` (an `nn.Embedding` of the shared rows) and `constants` int64 [blocks, k, 4] (a, b, sign a, b).

    A block is a field, or a run of rows that belongs to none; a block with as many buckets as rows is exact
    (identity hash), so that small fields and the padding row keep rows of their own. Any int32 or int64 id of the
    last block's range or beyond is accepted: new ids of the last field work at once.
    """

    kind = "hashed-embedding"
    constants: Tensor

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
        drawn = torch.randint(0, PRIME, shape, generator=generator)
        drawn[..., 0::2].clamp_(min=1)
        if modulo:
            drawn[:, 0, :2] = torch.tensor([1, 0])
        if not self.signed:
            drawn[..., 2:] = 0
        exact = torch.tensor([size == block.rows for size, block in zip(self.buckets, self.blocks, strict=True)])
        drawn[exact] = torch.tensor([1, 0, 0, 0])
        self.constants.copy_(drawn)
        scale = torch.full((sum(self.buckets), 1), std * math.sqrt(self.hashes))
        for block, is_exact in enumerate(exact.tolist()):
            if is_exact:
                first = sum(self.buckets[:block])
                scale[first : first + self.buckets[block]] = std
        self.table.weight.copy_(torch.randn(self.table.weight.shape, generator=generator) * scale)

    def rows_of(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows of the inner table that each id reads, int64 [*, k], and their signs (or None)."""
        ids = ids.long()
        own, size, first, block = self._geometry(ids)
        a, b, c, d = self.constants[block].unbind(-1)
        # residues below 2^31 keep every product inside int64; remainder also maps negative ids into range
        residue = torch.remainder(ids - own, PRIME).unsqueeze(-1)
        mixed = torch.remainder(residue * a + b, PRIME)
        rows = torch.remainder(mixed, size.unsqueeze(-1)) + first.unsqueeze(-1)
        if not self.signed:
            return rows, None
        odd = torch.remainder(residue * c + d, PRIME) % 2
        return rows, 1.0 - 2.0 * odd.float()

    def _geometry(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return each id's block start, buckets, first bucket and block, int64 [*] each."""
        starts = torch.tensor([block.start for block in self.blocks], device=ids.device)
        sizes = torch.tensor(self.buckets, device=ids.device)
        block = torch.bucketize(ids, starts[1:], right=True)
        return starts[block], sizes[block], (sizes.cumsum(0) - sizes)[block], block

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the mean of the k rows of each id: [*] to float32 [*, dim]; padding gives zeros."""
        rows, signs = self.rows_of(ids)
        found = self.table(rows)
        if signs is not None:
            found = found * signs.unsqueeze(-1)
        result: Tensor = found.squeeze(-2) if self.hashes == 1 else found.mean(dim=-2)
        if self.padding_idx is None:
            return result
        return result.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)
