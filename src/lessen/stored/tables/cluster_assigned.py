"""Tables in which every id of a large field reads the vector of its cluster.

id --codes[id], 1 or 2 bytes--> cluster of its field --> centres [d]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.tables.embedding import TableShape, gather_bytes, inner_table
from lessen.stored.tables.partly_exact import PartlyExactEmbedding, Places

CHECKED = 2**20
"""Ids whose codes are checked at a time."""


@stored
class ClusterAssignedEmbedding(PartlyExactEmbedding):
    """State: `codes` uint8 [ids of large fields, 1 or 2] (low byte first), the cluster of each id counted within its
    field, and `centres` (`nn.Embedding`, clusters of all large fields one after the other).
    """

    kind = "cluster-assigned-embedding"
    codes: Tensor

    def __init__(self, shape: TableShape, exact_blocks: list[int], clusters: list[int]) -> None:
        super().__init__(shape, exact_blocks)
        self.large = [block for number, block in enumerate(self.blocks) if number not in self.exact_blocks]
        if not isinstance(clusters, list) or len(clusters) != len(self.large) or not self.large:
            raise ValueError(f"clusters must list {max(1, len(self.large))} sizes, found {clusters!r}")
        self.clusters = [
            checks.whole("clusters", count, 1, min(block.rows, 2**16))
            for count, block in zip(clusters, self.large, strict=True)
        ]
        self.centres = inner_table(sum(self.clusters), shape.dim)
        width = 1 if max(self.clusters) <= 256 else 2
        self.register_buffer("codes", torch.zeros(self.computed_rows, width, dtype=torch.uint8))

    def extra_config(self) -> dict[str, Any]:
        """Return the exact blocks and the clusters of each other block."""
        return {**super().extra_config(), "clusters": list(self.clusters)}

    def check_values(self) -> None:
        """Refuse codes beyond the clusters of their field. Raises ValueError."""
        first = 0
        for block, clusters in zip(self.large, self.clusters, strict=True):
            for codes in torch.split(self.codes[first : first + block.rows], CHECKED):
                high = codes[:, 1].long() << 8 if codes.shape[1] == 2 else 0
                checks.within(f"codes of {block.name!r}", codes[:, 0] + high, 0, clusters - 1)
            first += block.rows

    def assignment(self, compact: Tensor) -> Tensor:
        """Return the cluster of ids numbered among the large fields, int64 [n], counted within the field."""
        codes = gather_bytes(self.codes, compact).long()
        return codes[:, 0] if codes.shape[1] == 1 else codes[:, 0] + (codes[:, 1] << 8)

    @torch.no_grad()
    def assign(self, compact: Tensor, clusters: Tensor) -> None:
        """Set the cluster of ids, both int64 [n]."""
        parts = [clusters & 255, clusters >> 8]
        self.codes[compact] = torch.stack(parts[: self.codes.shape[1]], dim=1).to(torch.uint8)

    def computed(self, places: Places) -> Tensor:
        """Return the centres of ids: [*] to float32 [*, dim]."""
        firsts, large = [], 0
        for number in range(len(self.blocks)):
            firsts.append(sum(self.clusters[:large]))
            large += number not in self.exact_blocks
        # ids of exact blocks pass too: their code is that of some other id, and their result is not used
        compact = places.compact.clamp(max=self.computed_rows - 1).reshape(-1)
        cluster = self.assignment(compact).view(places.compact.shape)
        first = torch.tensor(firsts, device=cluster.device)[places.block]
        found: Tensor = self.centres((cluster + first).clamp(max=self.centres.num_embeddings - 1))
        return found
