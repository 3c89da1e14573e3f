"""The task `vectors`: does a compact index find what exact search finds? Each query is a unit of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.log import SILENT, Log
from lessen.metrics import Outcomes
from lessen.metrics.retrieval import Recall
from lessen.stored.vectors.flat import FlatVectors
from lessen.task import TIMED, Split, Task, TaskOptions, Workload


class VectorsOptions(TaskOptions):
    """What a study may set under `task:`."""

    rows: int = Field(4000, ge=20, le=10**8, description="vectors that are searched")
    dim: int = Field(64, ge=2, le=65_536, description="numbers of a vector")
    queries: int = Field(200, ge=2, le=10**7, description="test queries")
    k: int = Field(10, ge=1, le=1000, description="neighbours that count")
    seed: int = Field(0, ge=0, le=2**31, description="of the vectors")


class Searcher(nn.Module):
    """A model that is its index: queries float [B, dim] to the scores of every vector, float32 [B, rows]."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.index: nn.Module = FlatVectors.of(vectors)

    def forward(self, queries: Tensor) -> Tensor:
        """Return the scores of every vector."""
        scores: Tensor = self.index(queries)
        return scores


class VectorsTask(Task):
    """Unit vectors around drawn centres; batches are (queries float [B, dim], their k nearest int64 [B, k])."""

    name = "vectors"
    provides = frozenset({"calibration"})
    Options = VectorsOptions

    def __init__(self, options: VectorsOptions | None = None) -> None:
        self.options = options or VectorsOptions()
        recall = Recall(self.options.k)
        self.metrics, self.columns = {recall.name: recall}, recall.reads
        generator = torch.Generator().manual_seed(self.options.seed)
        rows, dim = self.options.rows, self.options.dim
        centres = torch.randn(max(2, rows // 50), dim, generator=generator)
        self._centres, self.vectors = centres, _around(centres, rows, generator)

    def build(self) -> nn.Module:
        """Return the flat index of the vectors, in a model of its own."""
        return Searcher(self.vectors)

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - it has nothing to train
        """Return the flat index."""
        return self.build().eval()

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002 - drawn once
        """Yield batches of 50 queries with the numbers of their exact neighbours; other queries in every split."""
        number = ("test", "validation", "train").index(split)
        generator = torch.Generator().manual_seed(3 * self.options.seed + number + 1)
        queries = _around(self._centres, self.options.queries, generator)
        nearest = (queries @ self.vectors.t()).topk(self.options.k, dim=1).indices
        yield from zip(torch.split(queries, 50), torch.split(nearest, 50), strict=True)

    @torch.no_grad()
    def outcomes(self, model: Any, split: Split = "test") -> Outcomes:
        """Return the share of each query's exact neighbours among the k that the index gives."""
        found = []
        for queries, nearest in self.batches(split):
            given = model.index.search(queries, self.options.k)[1]
            found.append((given[:, :, None] == nearest[:, None, :]).any(dim=2).double().mean(dim=1))
        return Outcomes({f"recall@{self.options.k}": np.asarray(torch.cat(found))})

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:
        """Return `query`: the k best of one query."""

        def nearest(model: Any, query: Tensor) -> Any:
            return model.index.search(query, self.options.k)

        queries, _ = self.example_batch()
        ones = [queries[number % len(queries)][None] for number in range(items)]
        return {"query": Workload(nearest, ones, 1, "queries")}

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}


def _around(centres: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(len(centres), (count,), generator=generator)
    drawn = centres[chosen] + 0.7 * torch.randn(count, centres.shape[1], generator=generator)
    return torch.nn.functional.normalize(drawn, dim=1)
