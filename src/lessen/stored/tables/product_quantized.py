"""Product-quantised tables: a few short codes a row, one codebook for each group of columns.

id -> codes[id] = (c_1 .. c_M), 8 or 4 bits each -> codebook_m[c_m] (d / M values) -> side by side [d]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels.rows import Product
from lessen.stored.kernels.sources import Source
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, gather_bytes, inner_table

BAG_BLOCK = 8192
"""Ids of bags that are summed at a time: their codes stay in a core's cache."""


@stored
class ProductQuantizedEmbedding(StoredEmbedding):
    """State: `codes` uint8 [rows, groups] (two codes a byte at 4 bits, the first in the low half) and `codebook`.

    `codebook` is an `nn.Embedding` [groups * centroids, width]; the last group may be padded beyond dim. It takes
    gradients, so that codebooks can be tuned with the codes fixed. Padding gives zeros.
    """

    kind = "product-quantized-embedding"
    zero_padding = True
    codes: Tensor

    def __init__(self, shape: TableShape, groups: int, centroids: int) -> None:
        super().__init__(shape)
        self.groups = checks.whole("groups", groups, 1, shape.dim)
        self.centroids = checks.whole("centroids", centroids, 1, 256)
        self.width = -(-shape.dim // self.groups)
        self.bits = 4 if self.centroids <= 16 else 8
        self.codebook = inner_table(self.groups * self.centroids, self.width)
        row = packing.row_bytes(self.groups, self.bits)
        self.register_buffer("codes", torch.zeros(shape.rows, row, dtype=torch.uint8))

    def extra_config(self) -> dict[str, Any]:
        """Return the groups of columns and the centroids of each."""
        return {"groups": self.groups, "centroids": self.centroids}

    @classmethod
    def from_codes(cls, shape: TableShape, codes: Tensor, codebook: Tensor) -> ProductQuantizedEmbedding:
        """Build from codes int64 [rows, groups] and codebooks float32 [groups, centroids, width]."""
        made = cls(shape, codes.shape[1], codebook.shape[1])
        with torch.no_grad():
            made.codebook.weight.copy_(codebook.reshape(-1, made.width))
        made.codes.copy_(packing.pack(codes, made.bits))
        return made

    def check_values(self) -> None:
        """Refuse codes beyond the centroids. Raises ValueError."""
        if self.centroids < 2**self.bits:
            for part in torch.split(self.codes, BAG_BLOCK):
                checks.within("codes", packing.unpack(part, self.bits, self.groups), 0, self.centroids - 1)

    def centroid_rows(self, ids: Tensor) -> Tensor:
        """Return which centroid each group of each id reads, int32 [n, groups], for flat ids [n]."""
        packed = gather_bytes(self.codes, ids)
        base = torch.arange(self.groups, device=ids.device, dtype=torch.int32) * self.centroids
        return packing.unpack(packed, self.bits, self.groups) + base

    def source(self) -> Source | None:
        """Return the codes and codebooks."""
        return Product(self.codes, self.codebook.weight, self.groups, self.bits)

    def bagged(self, ids: Tensor, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        """Return bags [bags, dim]; sums of bags of one length without decoding a row."""
        plain = self.mode == "sum" and self.padding_idx is None and weights is None
        if plain and ids.dim() == 2 and ids.shape[1]:
            parts = [self._sums(part) for part in torch.split(ids, max(1, BAG_BLOCK // ids.shape[1]))]
            return torch.cat(parts) if parts else self.codebook.weight.new_zeros(0, self.embedding_dim)
        return super().bagged(ids, flat, starts, weights)

    def _sums(self, ids: Tensor) -> Tensor:
        """Return the sums of bags [n, length]: a bag of centroids for each group, so that no row is decoded."""
        bags, length = ids.shape
        rows = self.centroid_rows(ids.reshape(-1)).view(bags, length, self.groups)
        turned = rows.transpose(1, 2).reshape(bags * self.groups, length)
        sums: Tensor = functional.embedding_bag(turned, self.codebook.weight, mode="sum").view(
            bags, self.groups * self.width
        )
        return sums[:, : self.embedding_dim]

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the decoded row of each id: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1)
        decoded = self.codebook(self.centroid_rows(flat)).reshape(-1, self.groups * self.width)
        rows: Tensor = decoded[:, : self.embedding_dim].reshape(*ids.shape, self.embedding_dim)
        return self._without_padding(ids, rows)
