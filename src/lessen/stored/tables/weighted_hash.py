"""Weighted hash tables: a vector is a sum of shared rows, and each id says how much of each.

id --h_1 .. h_k--> k rows of its field's share of `table` --.
   --g-----------> k weights of `weights` ------------------+--> sum_j weight_j row_j
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks, hashing
from lessen.stored.base import stored
from lessen.stored.kernels.hashes import WeightedHash
from lessen.stored.kernels.located import Computed
from lessen.stored.tables.embedding import TableShape, inner_table, source_of
from lessen.stored.tables.partly_exact import PartlyExactEmbedding, Places


@stored
class WeightedHashEmbedding(PartlyExactEmbedding):
    """State: `table` (rows of all large fields), `weights` (`nn.Embedding` [slots, k]) and `constants` int64
    [large fields, k + 1, 2]: k hashes into rows, then one into slots. A field with as many slots as ids uses none.
    """

    kind = "weighted-hash-embedding"
    constants: Tensor

    def __init__(
        self, shape: TableShape, exact_blocks: list[int], rows: list[int], slots: list[int], hashes: int
    ) -> None:
        super().__init__(shape, exact_blocks)
        large = [block for number, block in enumerate(self.blocks) if number not in self.exact_blocks]
        for name, sizes in (("rows", rows), ("slots", slots)):
            if not isinstance(sizes, list) or len(sizes) != len(large) or not large:
                raise ValueError(f"{name} must list {max(1, len(large))} sizes, one a computed block, found {sizes!r}")
            for size, block in zip(sizes, large, strict=True):
                checks.whole(name, size, 1, block.rows)
        self.hashes = checks.whole("hashes", hashes, 1, 8)
        self.rows, self.slots, self.large = list(rows), list(slots), large
        self.table = inner_table(sum(rows), shape.dim)
        self.weights = inner_table(sum(slots), self.hashes)
        self.register_buffer("constants", torch.zeros(len(large), self.hashes + 1, 2, dtype=torch.int64))

    def extra_config(self) -> dict[str, Any]:
        """Return the exact blocks, the rows and slots of each other block, and the number of hashes."""
        return {**super().extra_config(), "rows": self.rows, "slots": self.slots, "hashes": self.hashes}

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Draw hashes, weights (uniform in [-1, 1]) and rows such that vectors have the deviation `std`."""
        self.constants.copy_(torch.randint(1, hashing.PRIME, self.constants.shape, generator=generator))
        self.weights.weight.copy_(torch.rand(self.weights.weight.shape, generator=generator) * 2.0 - 1.0)
        scale = std * math.sqrt(3.0 / self.hashes)
        self.table.weight.copy_(torch.randn(self.table.weight.shape, generator=generator) * scale)
        self.reset_exact(std, generator)

    def check_values(self) -> None:
        """Refuse constants that are no residues of the hash. Raises ValueError."""
        hashing.check("constants", self.constants)

    def places(self, places: Places) -> tuple[Tensor, Tensor]:
        """Return the rows of `table` that each id reads, int64 [*, k], and its row of `weights`, int64 [*]."""
        device = places.block.device
        order = torch.tensor(self._order(), device=device)[places.block]
        sizes = torch.tensor([self.rows, self.slots, [block.rows for block in self.large]], device=device)
        first = (sizes.cumsum(1) - sizes)[:, order]
        rows, slots, ids = sizes[:, order]
        a, b = self.constants[order].unbind(-1)
        hashed = hashing.mixed(hashing.residue(places.own).unsqueeze(-1), a, b)
        chosen = hashing.into(hashed[..., :-1], rows.unsqueeze(-1)) + first[0].unsqueeze(-1)
        slot = torch.where(slots == ids, torch.minimum(places.own, slots - 1), hashing.into(hashed[..., -1], slots))
        return chosen, slot + first[1]

    def computed_source(self) -> Computed | None:
        """Return rows, weights and hashes."""
        table = source_of(self.table)
        if table is None or source_of(self.weights) is None:
            return None
        sizes = (tuple(self._order()), tuple(self.rows), tuple(self.slots), tuple(block.rows for block in self.large))
        return WeightedHash(self.constants, table, self.weights.weight, *sizes)

    def computed(self, places: Places) -> Tensor:
        """Return the weighted sums of rows: [*] to float32 [*, dim]."""
        rows, slot = self.places(places)
        found: Tensor = (self.weights(slot).unsqueeze(-2) @ self.table(rows)).squeeze(-2)
        return found

    def _order(self) -> list[int]:
        """Return the place of each block among the large ones; exact blocks give 0."""
        large = iter(range(len(self.large)))
        return [0 if number in self.exact_blocks else next(large) for number in range(len(self.blocks))]
