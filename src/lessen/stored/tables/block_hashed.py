"""Random offset block embedding: every vector is cut from one shared flat array at hashed offsets.

row y of all large fields, chunk c --(a y + b c + s) mod p, onto m - z + 1--> start --> memory[start : start + z]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks, hashing
from lessen.stored.base import stored
from lessen.stored.kernels.hashes import BlockHashed
from lessen.stored.kernels.located import Computed
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.partly_exact import PartlyExactEmbedding, Places


@stored
class BlockHashedEmbedding(PartlyExactEmbedding):
    """State: `memory` [size] (a parameter), `constants` int64 [3] and `exact` (rows of small fields).

    `block` values are contiguous: with `block` equal to the width a vector is one contiguous read.
    """

    any_id = True
    kind = "block-hashed-embedding"
    constants: Tensor

    def __init__(self, shape: TableShape, exact_blocks: list[int], size: int, block: int) -> None:
        super().__init__(shape, exact_blocks)
        self.block = checks.whole("block", block, 1, shape.dim)
        if shape.dim % self.block:
            raise ValueError(f"block must divide the width {shape.dim}, found {self.block}")
        self.size = checks.whole("size", size, self.block, 2**31)
        self.memory = nn.Parameter(torch.zeros(self.size))
        self.register_buffer("constants", torch.zeros(3, dtype=torch.int64))

    def extra_config(self) -> dict[str, Any]:
        """Return the exact blocks, the size of the array and the contiguous values."""
        return {**super().extra_config(), "size": self.size, "block": self.block}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Draw hash constants and values."""
        drawn = torch.randint(1, hashing.PRIME, (3,), generator=generator)
        self.constants.copy_(drawn)
        self.memory.copy_(torch.randn(self.size, generator=generator) * std)
        self.reset_exact(std, generator)

    def check_values(self) -> None:
        """Refuse constants that are no residues of the hash. Raises ValueError."""
        hashing.check("constants", self.constants)

    def starts_of(self, compact: Tensor) -> Tensor:
        """Return where each chunk of each row starts, int64 [*, dim / block]."""
        a, b, s = self.constants
        chunk = torch.arange(self.embedding_dim // self.block, device=compact.device)
        # one constant of its own for each chunk: (b c + s) mod p
        shift = torch.remainder(chunk * b + s, hashing.PRIME)
        row = hashing.mixed(hashing.residue(compact).unsqueeze(-1), a, shift)
        return hashing.into(row, self.size - self.block + 1)

    def computed_source(self) -> Computed:
        """Return the array and its hash."""
        return BlockHashed(self.memory, self.constants, self.block, self.embedding_dim)

    def computed(self, places: Places) -> Tensor:
        """Return the chunks of each row side by side."""
        starts = self.starts_of(places.compact)
        if torch.is_grad_enabled() and self.memory.requires_grad:
            # a gather has a small gradient; that of overlapping windows would be `block` times the array
            rows = self.memory[starts.unsqueeze(-1) + torch.arange(self.block, device=starts.device)]
        else:
            windows = self.memory.detach().unfold(0, self.block, 1)
            rows = windows.index_select(0, starts.reshape(-1)).reshape(*starts.shape, self.block)
        return rows.flatten(-2)
