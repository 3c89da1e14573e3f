"""Base of tables that compute the vectors of large fields and keep rows of their own for small ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.fields import cover, located
from lessen.stored.kernels.located import Computed, PartlyExact
from lessen.stored.kernels.sources import Source
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table, source_of


class Places(NamedTuple):
    """The places of ids, int64 [*] each: block, id within the block, id among the computed rows."""

    block: Tensor
    own: Tensor
    compact: Tensor


class PartlyExactEmbedding(StoredEmbedding):
    """State: `exact` (`nn.Embedding`, rows of the blocks listed in `exact_blocks`, at least one) and the subclass's.

    Subclasses implement `computed`. Padding gives zeros.
    """

    def __init__(self, shape: TableShape, exact_blocks: list[int]) -> None:
        super().__init__(shape)
        self.blocks = cover(shape.segments, shape.rows)
        if not isinstance(exact_blocks, list):
            raise TypeError(f"exact_blocks must be a list, found {exact_blocks!r}")
        self.exact_blocks = [checks.whole("exact_blocks", item, 0, len(self.blocks) - 1) for item in exact_blocks]
        if len(set(self.exact_blocks)) != len(self.exact_blocks):
            raise ValueError(f"exact_blocks repeats a block: {exact_blocks!r}")
        own = sum(self.blocks[item].rows for item in self.exact_blocks)
        self.computed_rows = shape.rows - own
        self.exact = inner_table(max(own, 1), shape.dim)

    def computed(self, places: Places) -> Tensor:
        """Return the vectors of ids of large fields: [*] to float32 [*, dim]; ids of exact blocks give anything."""
        raise NotImplementedError(f"{type(self).__name__}.computed")

    zero_padding = True

    def computed_source(self) -> Computed | None:
        """Return how a compiled lookup reads the ids of large fields, or None."""
        return None

    def source(self) -> Source | None:
        """Return the exact rows and the computed ones."""
        computed, exact = self.computed_source(), source_of(self.exact)
        if computed is None or exact is None or not self.computed_rows:
            return None
        starts = tuple(block.start for block in self.blocks)
        return PartlyExact(exact, computed, starts, *map(tuple, self._offsets()))

    @torch.no_grad()
    def reset_exact(self, std: float, generator: torch.Generator) -> None:
        """Draw the exact rows."""
        self.exact.weight.copy_(torch.randn(self.exact.weight.shape, generator=generator) * std)

    def _offsets(self) -> tuple[list[int], list[int]]:
        """Return for each block its first row in `exact` (-1: computed) and its first computed row."""
        exact, computed = [], []
        rows, others = 0, 0
        for number, block in enumerate(self.blocks):
            is_exact = number in self.exact_blocks
            exact.append(rows if is_exact else -1)
            computed.append(others)
            rows, others = (rows + block.rows, others) if is_exact else (rows, others + block.rows)
        return exact, computed

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vector of each id: [*] to float32 [*, dim]."""
        ids = ids.long()
        if len(self.blocks) == 1 and not self.exact_blocks:
            return self._without_padding(ids, self.computed(Places(torch.zeros_like(ids), ids, ids)))
        exact, computed = (torch.tensor(side, device=ids.device) for side in self._offsets())
        block, own = located(ids, self.blocks)
        found = self.computed(Places(block, own, computed[block] + own))
        if self.exact_blocks:
            offset = exact[block]
            rows = self.exact(torch.where(offset >= 0, offset + own, 0))
            found = torch.where((offset >= 0).unsqueeze(-1), rows, found)
        return self._without_padding(ids, found)

    def extra_config(self) -> dict[str, Any]:
        """Return the blocks with rows of their own."""
        return {"exact_blocks": list(self.exact_blocks)}
