"""Two tiers: frequent ids read rows of their own, all others a compact table.

id --binary search in the hot list--> found: row of `hot`
                                      else:  `cold` (any stored table over all ids)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import STORED, stored
from lessen.stored.embedding import StoredEmbedding, TableShape, inner_table, split_config


@stored
class TieredEmbedding(StoredEmbedding):
    """State: `hot_ids` int32 [hot] in rising order, `hot` (`nn.Embedding` of their rows) and `cold`.

    The list costs 4 bytes a hot row and nothing for the others, whatever the vocabulary.
    """

    kind = "tiered-embedding"
    hot_ids: Tensor

    def __init__(self, shape: TableShape, hot: int, cold: StoredEmbedding) -> None:
        super().__init__(shape)
        checks.whole("hot", hot, 1, min(shape.rows, 2**31 - 1))
        if cold.num_embeddings != shape.rows or cold.embedding_dim != shape.dim or cold.mode is not None:
            raise ValueError("the cold table must hold all rows, of the same width, and look up single ids")
        self.hot = inner_table(hot, shape.dim)
        self.cold = cold
        self.register_buffer("hot_ids", torch.zeros(hot, dtype=torch.int32))

    def extra_config(self) -> dict[str, Any]:
        """Return the number of hot rows, and the kind and configuration of the cold table."""
        return {"hot": len(self.hot_ids), "cold": {"kind": self.cold.kind, "config": self.cold.config()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TieredEmbedding:
        """Build an empty twin. Raises ValueError or TypeError for values that make no sense."""
        shape, extra = split_config(config)
        cold = extra.pop("cold", None)
        if not isinstance(cold, dict) or set(cold) != {"kind", "config"} or cold["kind"] == cls.kind:
            raise ValueError(f"cold must name another stored table by kind and config, found {cold!r}")
        kind = STORED.get(cold["kind"])
        if kind is None or not issubclass(kind, StoredEmbedding) or not isinstance(cold["config"], dict):
            raise ValueError(f"cold is of kind {cold['kind']!r}, which is no stored table")
        inner = kind.from_config(cold["config"])
        assert isinstance(inner, StoredEmbedding)
        return cls(shape, cold=inner, **extra)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the hot row or the cold table's row of each id: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1)
        position = torch.searchsorted(self.hot_ids, flat.to(torch.int32)).clamp_(max=len(self.hot_ids) - 1)
        found = self.hot_ids[position] == flat
        rows = torch.where(found.unsqueeze(1), self.hot(position), self.cold(flat))
        return rows.reshape(*ids.shape, self.embedding_dim)


def bare(shape: TableShape) -> TableShape:
    """Return the shape of a table inside another: single lookups, padding and fields kept."""
    return TableShape(shape.rows, shape.dim, shape.padding_idx, segments=[list(item) for item in shape.segments])
