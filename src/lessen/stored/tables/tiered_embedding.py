"""Two tiers: frequent ids read rows of their own, all others a compact table.

id --bit of the id--> set: its place among hot ids --> row of `hot`
                      else: `cold` (any stored table over all ids)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import bits, checks
from lessen.stored.base import STORED, stored
from lessen.stored.kernels.sources import Source
from lessen.stored.kernels.sparse import Tiered
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table, source_of, split_config

INDEX_SHARE, SMALL_INDEX = 4, 2**26
"""The index may take so many times the bytes of the tables, or so many bytes."""


@stored
class TieredEmbedding(StoredEmbedding):
    """State: `hot_ids` int32 [hot] in rising order, `hot` (a table of their rows) and `cold`.

    `hot` is an `nn.Embedding`, or any stored table of as many rows. The list costs 4 bytes a hot row and nothing for
    the others, whatever the vocabulary.
    """

    kind = "tiered-embedding"
    hot_ids: Tensor
    hot: nn.Module

    def __init__(
        self, shape: TableShape, hot: int, cold: StoredEmbedding, hot_table: StoredEmbedding | None = None
    ) -> None:
        super().__init__(shape)
        checks.whole("hot", hot, 1, min(shape.rows, 2**31 - 1))
        if cold.num_embeddings != shape.rows or cold.embedding_dim != shape.dim or cold.mode is not None:
            raise ValueError("the cold table must hold all rows, of the same width, and look up single ids")
        if hot_table is not None and (hot_table.num_embeddings, hot_table.embedding_dim) != (hot, shape.dim):
            raise ValueError("the hot table must hold as many rows as there are hot ids, of the same width")
        self.hot_kind = None if hot_table is None else hot_table.kind
        self.hot = inner_table(hot, shape.dim) if hot_table is None else hot_table
        self.cold = cold
        self._index: tuple[Any, Tensor, Tensor] | None = None
        self.register_buffer("hot_ids", torch.zeros(hot, dtype=torch.int32))

    def extra_config(self) -> dict[str, Any]:
        """Return the number of hot rows, and kind and configuration of the cold and of a stored hot table."""
        described: dict[str, Any] = {"hot": len(self.hot_ids), "cold": _described(self.cold)}
        if self.hot_kind is not None and isinstance(self.hot, StoredEmbedding):
            described["hot_table"] = _described(self.hot)
        return described

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TieredEmbedding:
        """Build an empty twin. Raises ValueError or TypeError for values that make no sense."""
        shape, extra = split_config(config)
        cold = _build(extra.pop("cold", None), "cold")
        hot_table = _build(extra.pop("hot_table"), "hot_table") if "hot_table" in extra else None
        return cls(shape, cold=cold, hot_table=hot_table, **extra)

    @torch.no_grad()
    def fill_hot(self, ids: Tensor, rows: Tensor) -> None:
        """Set the hot ids (int64 [hot], rising) and their rows (float32 [hot, dim])."""
        if not isinstance(self.hot, nn.Embedding):
            raise TypeError("the hot table is stored in a form of its own")
        self.hot_ids.copy_(ids)
        self.hot.weight.copy_(rows)

    def check_values(self) -> None:
        """Refuse hot ids that do not rise, or that lie beyond the table. Raises ValueError."""
        checks.within("hot_ids", self.hot_ids, 0, self.num_embeddings - 1)
        if bool((self.hot_ids[1:] <= self.hot_ids[:-1]).any()):
            raise ValueError("hot_ids must rise from each to the next")

    def source(self) -> Source | None:
        """Return both tiers and the index of the hot ids."""
        hot, cold = source_of(self.hot), source_of(self.cold)
        if hot is None or cold is None or not self._indexed():
            return None
        return Tiered(*self._bits(), hot, cold, self.num_embeddings)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the hot row or the cold table's row of each id: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1)
        found, position = self._find(flat)
        rows = torch.where(found.unsqueeze(1), self.hot(position), self.cold(flat))
        return rows.reshape(*ids.shape, self.embedding_dim)

    def _find(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether each flat id is hot, bool [n], and its place among the hot ids, int64 [n] (0 if it is not).

        A bit for each id and a running count for each 64 ids answer without a search. The list is searched where a
        table of few rows is declared over so many ids that the bits would be most of its memory.
        """
        if not self._indexed():
            place = torch.searchsorted(self.hot_ids, flat.clamp(max=2**31 - 1).to(torch.int32))
            place = place.clamp(max=len(self.hot_ids) - 1)
            found = self.hot_ids[place] == flat
            return found, torch.where(found, place, 0)
        words, counts = self._bits()
        word, bit = flat.long() >> 6, flat.long() & 63
        hot = words[word]
        found = ((hot >> bit) & 1).bool()
        place = counts[word] + bits.ones(hot & ((1 << bit) - 1))
        return found, torch.where(found, place, 0)

    def _indexed(self) -> bool:
        """Tell whether the index, 12 bytes a 64 ids, is in proportion to the rows that are stored."""
        index = self.num_embeddings // 64 * 12
        return index <= SMALL_INDEX or index <= INDEX_SHARE * sum(part.nbytes for part in self.state_dict().values())

    def _bits(self) -> tuple[Tensor, Tensor]:
        """Return one bit an id in int64 words and the hot ids before each word, made anew when the list changed."""
        version = (self.hot_ids.data_ptr(), self.hot_ids._version)
        if self._index is None or self._index[0] != version:
            count = -(-self.num_embeddings // 64)
            hot = self.hot_ids.long()
            words = torch.zeros(count, dtype=torch.int64, device=hot.device)
            words.scatter_add_(0, hot >> 6, torch.ones_like(hot) << (hot & 63))
            starts = torch.arange(count, device=hot.device) * 64
            self._index = (version, words, torch.searchsorted(hot, starts).int())
        return self._index[1], self._index[2]

    def packed_bytes(self) -> int:
        """Return the bytes of the index that is derived from the hot ids when first needed."""
        return 0 if self._index is None else sum(part.numel() * part.element_size() for part in self._index[1:])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the derived index out of copies."""
        return {**self.__dict__, "_index": None}


def bare(shape: TableShape) -> TableShape:
    """Return the shape of a table inside another: single lookups, padding and fields kept."""
    return TableShape(shape.rows, shape.dim, shape.padding_idx, segments=[list(item) for item in shape.segments])


def _described(table: StoredEmbedding) -> dict[str, Any]:
    return {"kind": table.kind, "config": table.config()}


def _build(value: Any, name: str) -> StoredEmbedding:
    """Build the inner table that a configuration describes; tiers do not nest. Raises ValueError or TypeError."""
    if not isinstance(value, dict) or set(value) != {"kind", "config"} or value["kind"] == TieredEmbedding.kind:
        raise ValueError(f"{name} must give another stored table by kind and config, found {value!r}")
    kind = STORED.get(value["kind"]) if isinstance(value["kind"], str) else None
    if kind is None or not issubclass(kind, StoredEmbedding) or not isinstance(value["config"], dict):
        raise ValueError(f"{name} is of kind {value['kind']!r}, which is no stored table")
    return kind.from_config(value["config"])
