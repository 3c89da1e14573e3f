"""Clustered tables: each chunk of a row is the centre of its cluster plus a hashed correction.

id --codes[id, c]--> centres_c [d / C] --.
   --h_c(id)-------> corrections_c ------+--> sum, chunks side by side [d]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks, hashing
from lessen.stored.base import stored
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, gather_bytes, inner_table


@stored
class ClusteredEmbedding(StoredEmbedding):
    """State: `codes` uint8 [rows, chunks], `centres` and `corrections` (`nn.Embedding` [chunks * clusters, width]),
    `constants` int64 [chunks, 2] of the hash that picks a correction. Padding gives zeros.
    """

    kind = "clustered-embedding"
    zero_padding = True
    codes: Tensor
    constants: Tensor

    def __init__(self, shape: TableShape, chunks: int, clusters: int) -> None:
        super().__init__(shape)
        self.chunks = checks.whole("chunks", chunks, 1, shape.dim)
        if shape.dim % self.chunks:
            raise ValueError(f"chunks must divide the width {shape.dim}, found {self.chunks}")
        self.clusters = checks.whole("clusters", clusters, 1, 256)
        width = shape.dim // self.chunks
        self.centres = inner_table(self.chunks * self.clusters, width)
        self.corrections = inner_table(self.chunks * self.clusters, width)
        self.register_buffer("codes", torch.zeros(shape.rows, self.chunks, dtype=torch.uint8))
        self.register_buffer("constants", torch.zeros(self.chunks, 2, dtype=torch.int64))

    def extra_config(self) -> dict[str, Any]:
        """Return the chunks of a row and the clusters of a chunk."""
        return {"chunks": self.chunks, "clusters": self.clusters}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Draw codes, hash constants and both tables; the sum of two rows has the deviation `std`."""
        self.codes.copy_(torch.randint(0, self.clusters, self.codes.shape, generator=generator))
        self.draw_hash(generator)
        for table in (self.centres, self.corrections):
            table.weight.copy_(torch.randn(table.weight.shape, generator=generator) * std * 0.5**0.5)

    @torch.no_grad()
    def draw_hash(self, generator: torch.Generator) -> None:
        """Draw which correction each id reads."""
        self.constants.copy_(torch.randint(1, hashing.PRIME, self.constants.shape, generator=generator))

    def check_values(self) -> None:
        """Refuse codes beyond the clusters and constants that are no residues of the hash. Raises ValueError."""
        checks.within("codes", self.codes, 0, self.clusters - 1)
        hashing.check("constants", self.constants)

    def correction_rows(self, ids: Tensor) -> Tensor:
        """Return the correction of each chunk of flat ids, int64 [n, chunks], numbered from 0 in each chunk."""
        a, b = self.constants.unbind(-1)
        return hashing.into(hashing.mixed(hashing.residue(ids.long()).unsqueeze(-1), a, b), self.clusters)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return centre plus correction of each id: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1)
        base = torch.arange(self.chunks, device=ids.device) * self.clusters
        centres = self.centres(gather_bytes(self.codes, flat).long() + base)
        rows: Tensor = (centres + self.corrections(self.correction_rows(flat) + base)).flatten(1)
        return self._without_padding(ids, rows.reshape(*ids.shape, self.embedding_dim))
