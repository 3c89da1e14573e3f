"""What every index of vectors is: rows that can be added and removed, and one product with every row for a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import StoredModule

Index = TypeVar("Index", bound="VectorIndex")
ROWS_AT_ONCE = 1 << 16
"""Rows whose codes are opened together, so that a search holds no dense copy of an index."""


class VectorIndex(StoredModule):
    """Vectors by number; a query gets the inner product with each and the numbers of the best.

    A subclass names the buffers that grow with the rows in `per_row`; what it holds beside them (codebooks, a
    rotation) is learned once by `fitted` and serves every row that is added later.
    """

    per_row: tuple[str, ...]

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.rows = checks.whole("rows", rows, 0, 2**31)
        self.dim = checks.whole("dim", dim, 1, 2**20)
        checks.elements("an index", self.rows, self.dim)

    @classmethod
    def fitted(cls: type[Index], sample: Tensor, seed: int = 0, **sizes: Any) -> Index:  # noqa: ARG003 - for those who draw
        """Return an index without rows, with all that is learned from a sample of vectors, float [n, dim]."""
        return cls(0, sample.shape[1], **sizes)

    @classmethod
    def of(cls: type[Index], vectors: Tensor, seed: int = 0, **sizes: Any) -> Index:
        """Return an index of float vectors [rows, dim], learned from themselves."""
        made = cls.fitted(vectors, seed, **sizes)
        made.add(vectors)
        return made

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"rows": self.rows, "dim": self.dim}

    def encode(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return the rows of float vectors [n, dim], one tensor for each name of `per_row`."""
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def add(self, vectors: Tensor) -> range:
        """Append float vectors [n, dim]; return their numbers.

        Raises:
            ValueError: they are of another width.
        """
        if vectors.dim() != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors of shape {list(vectors.shape)} do not fit an index of width {self.dim}")
        made = self.encode(vectors.float())
        for name in self.per_row:
            self._set(name, torch.cat([self._get(name), made[name]]))
        first, self.rows = self.rows, self.rows + len(vectors)
        return range(first, self.rows)

    def remove(self, numbers: Tensor) -> None:
        """Drop the rows of these numbers, int64 [n]; those behind them move up.

        Raises:
            ValueError: a number is not that of a row.
        """
        checks.within("numbers", numbers, 0, self.rows - 1)
        kept = torch.ones(self.rows, dtype=torch.bool)
        kept[numbers] = False
        for name in self.per_row:
            self._set(name, self._get(name)[kept])
        self.rows = int(kept.sum())

    def take_rows(self, rows: Mapping[str, Tensor]) -> None:
        """Take tensors as the rows, such as those of a mapped file; the caller runs `check` on what is not its own."""
        for name in self.per_row:
            self._set(name, rows[name])
        self.rows = len(rows[self.per_row[0]])

    def _get(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def _set(self, name: str, tensor: Tensor) -> None:
        owner, _, own = name.rpartition(".")
        self.get_submodule(owner)._buffers[own] = tensor

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        twin = type(self).from_config({**self.config(), "rows": 1})
        return sum(twin.get_buffer(name).nbytes for name in self.per_row)

    @property
    def shared_bytes(self) -> int:
        """Bytes of what all rows share, such as codebooks."""
        return sum(tensor.nbytes for name, tensor in self.state_dict().items() if name not in self.per_row)

    def scores_of(self, queries: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Return the inner product of float [B, dim] with some rows, float32 [B, n]."""
        raise NotImplementedError(f"{type(self).__name__}.scores_of")

    def _parts(self) -> list[dict[str, Tensor]]:
        starts = range(0, max(self.rows, 1), ROWS_AT_ONCE)
        return [{name: self._get(name)[at : at + ROWS_AT_ONCE] for name in self.per_row} for at in starts]

    def scores(self, queries: Tensor) -> Tensor:
        """Return the inner product of float [B, dim] with every vector, float32 [B, rows]."""
        parts = [self.scores_of(queries.float(), rows) for rows in self._parts()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def forward(self, queries: Tensor) -> Tensor:
        """Return the scores of every vector, float32 [B, rows]."""
        return self.scores(queries)

    def search(self, queries: Tensor, k: int, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the k best scores [B, k] and their numbers [B, k], best first.

        Args:
            without: numbers of rows that are not found, int64 [n]; their score is -inf.

        Raises:
            ValueError: k is not between 1 and the number of vectors.
        """
        scores = self.scores(queries)
        if without is not None and len(without):
            scores = scores.index_fill(1, without, float("-inf"))
        best = scores.topk(checks.whole("k", k, 1, self.rows), dim=1)
        return best.values, best.indices
