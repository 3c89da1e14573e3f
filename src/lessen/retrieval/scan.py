"""How one file of rows is looked through: product codes and float32 by faiss where it is installed,
all else by torch."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lessen.retrieval.faiss_files import as_faiss, chosen, faiss_module
from lessen.stored.vectors.flat import FlatVectors
from lessen.stored.vectors.product import ProductVectors
from lessen.stored.vectors.staged import StagedVectors

SMALLEST = 4096
"""Rows from which faiss takes its turn: it copies the codes."""


class Scan:
    """Searches the rows of a stored index that were not removed; what faiss needs is made at the first search."""

    def __init__(self, index: StagedVectors, removed: Tensor) -> None:
        self.index, self.removed = index, removed

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return scores [Q, k] and numbers int64 [Q, k], best first, with -inf where there are fewer."""
        if self._exact:
            rows = self.index.coarse._get("vectors").numpy()  # as it is mapped; nothing is copied
            wanted, faiss = self.index.reduced(queries).contiguous().numpy(), faiss_module()
            found = faiss.knn(wanted, rows, self.index.candidates(k), metric=faiss.METRIC_INNER_PRODUCT)
            first, whole = (torch.from_numpy(one) for one in found)
            return (first, whole) if self.index.fine is None else self.index.ordered(queries, first, whole, k)
        if self._other is None:
            return self.index.search(queries, k, self.removed)
        reduced = self.index.reduced(queries).contiguous().numpy()
        found = self._other.search(reduced, self.index.candidates(k))
        scores, places = (torch.from_numpy(one) for one in found)
        scores, numbers = scores.masked_fill(places < 0, float("-inf")), self._kept[places.clamp(min=0)]
        return (scores, numbers) if self.index.fine is None else self.index.ordered(queries, scores, numbers, k)

    @cached_property
    def _exact(self) -> bool:
        """Whether all rows are float32 and none was removed: faiss then compares them where they lie."""
        plain = isinstance(self.index.coarse, FlatVectors) and self.index.rows >= SMALLEST and not len(self.removed)
        return plain and faiss_module() is not None

    @cached_property
    def _kept(self) -> Tensor:
        there = torch.ones(self.index.rows, dtype=torch.bool)
        there[self.removed] = False
        return there.nonzero()[:, 0]

    @cached_property
    def _other(self) -> Any:
        coarse = self.index.coarse
        if not isinstance(coarse, ProductVectors) or coarse.rows < SMALLEST or faiss_module() is None:
            return None
        return as_faiss(chosen(coarse, self._kept))
