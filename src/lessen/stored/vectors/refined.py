"""An index whose best rows are ordered again by what their own neighbours say (SuperGlobal)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import STORED, StoredModule, stored
from lessen.stored.vectors.index import VectorIndex


def refined_scores(queries: Tensor, vectors: Tensor, neighbours: int, beta: float) -> Tensor:
    """Return new scores of each query's candidates, float32 [B, M].

    Args:
        queries: float [B, dim]; vectors: float [B, M, dim], the best first by the product with the query.
        neighbours: K; beta: weight of a neighbour, times its product.

    x'_i is the mean of x_i (weight 1) and its K nearest candidates (weight beta times their product, at least 0); s1 =
    <q, x'_i>; q' is the largest of each number over the K + 1 best by s1; the score is the mean of s1 and <q', x'_i>.
    """
    count = min(neighbours, vectors.shape[1] - 1)
    alike = vectors @ vectors.transpose(1, 2)
    alike.diagonal(dim1=1, dim2=2).fill_(float("inf"))  # a row is its own nearest, whatever its copies say
    nearest = alike.topk(count + 1, dim=2)
    weights = (beta * nearest.values).clamp(min=0.0)
    weights[:, :, 0] = 1.0
    spread = torch.zeros_like(alike).scatter_(2, nearest.indices, weights)
    refined = (spread @ vectors) / weights.sum(dim=2, keepdim=True)
    first = (refined @ queries[:, :, None])[:, :, 0]
    best = first.topk(count + 1, dim=1).indices
    chosen = refined.gather(1, best[:, :, None].expand(-1, -1, refined.shape[2]))
    again = (refined @ chosen.amax(dim=1)[:, :, None])[:, :, 0]
    return (first + again) / 2


@stored
class RefinedVectors(VectorIndex):
    """Child: `inner`, an index that can say what its rows stand for (`dequantise`); see `refined_scores`.

    Args:
        inner: {"kind": ..., "config": ...} of the child, without rows.
        first: M, rows that are ordered again; what follows them keeps its order and scores below them.
    """

    kind = "refined-vectors"

    def __init__(
        self, rows: int, dim: int, inner: Mapping[str, Any], first: int = 400, neighbours: int = 9, beta: float = 0.15
    ) -> None:
        super().__init__(rows, dim)
        self.first = checks.whole("first", first, 1, 2**20)
        self.neighbours = checks.whole("neighbours", neighbours, 0, 2**20)
        if not isinstance(beta, float) or not 0 <= beta <= 100:
            raise ValueError(f"beta must be a number between 0 and 100, found {beta!r}")
        self.beta = beta
        kind = STORED.get(inner["kind"])
        if kind is None or not issubclass(kind, VectorIndex) or kind is RefinedVectors:
            raise ValueError(f"{inner['kind']!r} is no index that can be refined")
        made: StoredModule = kind.from_config({**inner["config"], "rows": self.rows})
        assert isinstance(made, VectorIndex)
        self.inner: VectorIndex = made

    @classmethod
    def around(cls, inner: VectorIndex, first: int, neighbours: int, beta: float) -> RefinedVectors:
        """Return an index that orders the best rows of another again."""
        with torch.device("meta"):
            made = cls(inner.rows, inner.dim, _said(inner), first, neighbours, beta)
        made.inner = inner
        return made

    def config(self) -> dict[str, Any]:
        """Return sizes, knobs and the child."""
        knobs = {"first": self.first, "neighbours": self.neighbours, "beta": self.beta}
        return {**super().config(), "inner": _said(self.inner), **knobs}

    @property
    def per_row(self) -> tuple[str, ...]:  # type: ignore[override]
        """The buffers of the child that grow with the rows."""
        return tuple(f"inner.{name}" for name in self.inner.per_row)

    def encode(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return the rows of the child."""
        return {f"inner.{name}": rows for name, rows in self.inner.encode(vectors).items()}

    def add(self, vectors: Tensor) -> range:
        """Append float vectors [n, dim]; return their numbers. Raises ValueError, see VectorIndex."""
        numbers = super().add(vectors)
        self.inner.rows = self.rows
        return numbers

    def remove(self, numbers: Tensor) -> None:
        """Drop rows. Raises ValueError, see VectorIndex."""
        super().remove(numbers)
        self.inner.rows = self.rows

    def scores(self, queries: Tensor) -> Tensor:
        """Return scores whose order is the new one, float32 [B, rows]; rows that were not refined keep theirs, less 4.

        Products of unit vectors lie between -1 and 1, and refined scores of them not far beyond.
        """
        scores = self.inner.scores(queries)
        count = min(self.first, self.rows)
        if not count:
            return scores
        best = scores.topk(count, dim=1).indices
        rows = self.inner.dequantise()
        made = scores - 4.0 * scores.abs().amax(dim=1, keepdim=True).clamp(min=1.0)
        for query, numbers, own in zip(queries.float(), best, made, strict=True):  # one [M, M] matrix at a time
            own[numbers] = refined_scores(query[None], rows[numbers][None], self.neighbours, self.beta)[0]
        return made

    def dequantise(self) -> Tensor:
        """Return the vectors of the child, float32 [rows, dim]."""
        return self.inner.dequantise()


def _said(inner: VectorIndex) -> dict[str, Any]:
    config = {name: value for name, value in inner.config().items() if name != "rows"}
    return {"kind": inner.kind, "config": config}
