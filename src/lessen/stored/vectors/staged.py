"""An index in stages: fewer numbers, few bits to look through all rows, better codes to order the best of them again.

queries --> reduction --> coarse: every row, k * widen best --> fine: those rows only --> k best
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import STORED, StoredModule, stored
from lessen.stored.vectors.index import VectorIndex


@stored
class Reduction(StoredModule):
    """Vectors of fewer numbers: the first ones (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147), or a projection.

    State: `basis` float32 [dim, kept] where `projected`, such as the principal directions; else nothing.
    """

    kind = "vector-reduction"
    basis: Tensor

    def __init__(self, dim: int, kept: int, projected: bool) -> None:
        super().__init__()
        self.dim = checks.whole("dim", dim, 1, 2**20)
        self.kept = checks.whole("kept", kept, 1, self.dim)
        self.projected = checks.one_of("projected", projected, (True, False))
        if self.projected:
            self.register_buffer("basis", torch.zeros(self.dim, self.kept))

    @classmethod
    def principal(cls, sample: Tensor, kept: int) -> Reduction:
        """Return the projection on the `kept` directions that hold most of a sample's squares, float [n, dim].

        Directions are those of products, not of differences from the mean: products of what remains are then nearest
        to products before.
        """
        made = cls(sample.shape[1], kept, True)
        squares = sample.double().t() @ sample.double()
        made.basis.copy_(torch.linalg.eigh(squares)[1].flip(1)[:, : made.kept])
        return made

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"dim": self.dim, "kept": self.kept, "projected": self.projected}

    def forward(self, vectors: Tensor) -> Tensor:
        """Return float vectors [n, kept] of float [n, dim]."""
        return torch.mm(vectors, self.basis) if self.projected else vectors[:, : self.kept]


@stored
class StagedVectors(VectorIndex):
    """Children: `reduction` (or none), `coarse`, and `fine` (or none); rows of both grow together.

    Args:
        coarse, fine, reduction: {"kind": ..., "config": ...} of the children, without rows.
        widen: candidates that are ordered again, for each that is asked for.
    """

    kind = "staged-vectors"

    def __init__(
        self,
        rows: int,
        dim: int,
        coarse: Mapping[str, Any],
        fine: Mapping[str, Any] | None = None,
        reduction: Mapping[str, Any] | None = None,
        widen: int = 10,
    ) -> None:
        super().__init__(rows, dim)
        self.widen = checks.whole("widen", widen, 1, 10_000)
        self.reduction: Reduction | None = None if reduction is None else _child(reduction, Reduction)
        self.coarse: VectorIndex = _child(coarse, VectorIndex, self.rows)
        self.fine: VectorIndex | None = None if fine is None else _child(fine, VectorIndex, self.rows)
        seen = self.dim if self.reduction is None else self.reduction.kept
        if (self.reduction is not None and self.reduction.dim != self.dim) or self.coarse.dim != seen:
            raise ValueError(f"the stages of an index of width {self.dim} are of other widths")
        if self.fine is not None and self.fine.dim != self.dim:
            raise ValueError(f"the fine stage has width {self.fine.dim}, not {self.dim}")

    @classmethod
    def around(
        cls, coarse: VectorIndex, fine: VectorIndex | None = None, reduction: Reduction | None = None, widen: int = 10
    ) -> StagedVectors:
        """Return an index of these stages; both hold the same rows."""
        dim = coarse.dim if reduction is None else reduction.dim
        parts = {
            name: None if part is None else {"kind": part.kind, "config": _without_rows(part.config())}
            for name, part in (("coarse", coarse), ("fine", fine), ("reduction", reduction))
        }
        with torch.device("meta"):
            made = cls(coarse.rows, dim, **parts, widen=widen)  # type: ignore[arg-type]
        made.coarse, made.fine, made.reduction = coarse, fine, reduction
        return made

    def config(self) -> dict[str, Any]:
        """Return sizes and stages."""
        stages = {
            name: None if part is None else {"kind": part.kind, "config": _without_rows(part.config())}
            for name, part in (("coarse", self.coarse), ("fine", self.fine), ("reduction", self.reduction))
        }
        return {**super().config(), **stages, "widen": self.widen}

    @property
    def per_row(self) -> tuple[str, ...]:  # type: ignore[override]
        """The buffers of the stages that grow with the rows."""
        fine = () if self.fine is None else self.fine.per_row
        return (*(f"coarse.{name}" for name in self.coarse.per_row), *(f"fine.{name}" for name in fine))

    def _stages(self) -> list[tuple[str, VectorIndex]]:
        return [("coarse", self.coarse), *([("fine", self.fine)] if self.fine is not None else [])]

    def reduced(self, vectors: Tensor) -> Tensor:
        """Return what the coarse stage sees of float vectors [n, dim]."""
        return vectors if self.reduction is None else self.reduction.forward(vectors)

    def encode(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return the rows of both stages."""
        made = {f"coarse.{name}": rows for name, rows in self.coarse.encode(self.reduced(vectors)).items()}
        if self.fine is not None:
            made |= {f"fine.{name}": rows for name, rows in self.fine.encode(vectors).items()}
        return made

    def add(self, vectors: Tensor) -> range:
        """Append float vectors [n, dim] to both stages; return their numbers. Raises ValueError, see VectorIndex."""
        numbers = super().add(vectors)
        self._settle()
        return numbers

    def remove(self, numbers: Tensor) -> None:
        """Drop rows from both stages. Raises ValueError, see VectorIndex."""
        super().remove(numbers)
        self._settle()

    def take_rows(self, rows: Mapping[str, Tensor]) -> None:
        """Take tensors as the rows of both stages."""
        super().take_rows(rows)
        self._settle()

    def _settle(self) -> None:
        for _, stage in self._stages():
            stage.rows = self.rows

    def scores_of(self, queries: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Return what the coarse stage says, float32 [B, n]."""
        return self.coarse.scores_of(self.reduced(queries), _of("coarse", rows))

    def search(self, queries: Tensor, k: int, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the k best scores [B, k] by the last stage and their numbers [B, k], best first; see VectorIndex.

        Raises:
            ValueError: k is not between 1 and the number of vectors.
        """
        checks.whole("k", k, 1, self.rows)
        scores, found = self.coarse.search(self.reduced(queries.float()), self.candidates(k), without)
        return (scores, found) if self.fine is None else self.ordered(queries, scores, found, k)

    def candidates(self, k: int) -> int:
        """Return how many rows the coarse stage gives for k."""
        return min(self.rows, k if self.fine is None else k * self.widen)

    def ordered(self, queries: Tensor, scores: Tensor, found: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k best of each query's candidates by the fine stage.

        Args:
            scores: what the coarse stage says, [B, n]; found: numbers of rows, int64 [B, n].
        """
        assert self.fine is not None
        again = torch.full(found.shape, float("-inf"))
        for row, (query, numbers) in enumerate(zip(queries.float(), found, strict=True)):
            there = scores[row].isfinite()
            chosen = {name: self.fine._get(name)[numbers[there]] for name in self.fine.per_row}
            again[row, there] = self.fine.scores_of(query[None], chosen)[0]
        best = again.topk(k, dim=1)
        return best.values, found.gather(1, best.indices)

    def dequantise(self) -> Tensor:
        """Return the vectors that the last stage stands for, float32 [rows, dim], or [rows, kept] of a coarse one."""
        last: VectorIndex = self.coarse if self.fine is None else self.fine
        return last.dequantise()


def _of(stage: str, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.partition(".")[2]: tensor for name, tensor in rows.items() if name.startswith(f"{stage}.")}


def _without_rows(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "rows"}


def _child(said: Mapping[str, Any], base: type[Any], rows: int | None = None) -> Any:
    """Build a child of a registered kind. Raises ValueError or TypeError."""
    kind = STORED.get(said["kind"])
    if kind is None or not issubclass(kind, base) or kind is StagedVectors:
        raise ValueError(f"{said['kind']!r} is no stage of an index")
    return kind.from_config({**said["config"], **({} if rows is None else {"rows": rows})})
