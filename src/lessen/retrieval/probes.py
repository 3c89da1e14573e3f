"""Probes: some of the first vectors, with their exact neighbours among everything that was ever added.

Quantised rows cannot say what exact search would find. Neighbours are therefore kept as vectors come in, while they are
float32: an index knows its own recall without the vectors it was made of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.retrieval.exact import merged

COUNT = 128
DEPTH = 100
"""Neighbours that are kept of each."""
AT_ONCE = 1 << 14


class Probes:
    """Vectors float32 [p, dim], their own digests int64 [p], neighbours' digests int64 [p, n] with scores [p, n]."""

    def __init__(self, vectors: Tensor, own: Tensor, digests: Tensor, scores: Tensor) -> None:
        self.vectors, self.own, self.digests, self.scores = vectors, own, digests, scores

    @classmethod
    def drawn(cls, vectors: Tensor, digests: Tensor, seed: int = 0) -> Probes:
        """Return probes without neighbours, drawn from vectors float [n, dim]."""
        chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:COUNT].sort().values
        none = torch.zeros(len(chosen), 0)
        return cls(vectors[chosen].clone(), digests[chosen], none.long(), none)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Probes:
        """Return the probes of a file."""
        return cls(*(tensors[name] for name in ("vectors", "own", "digests", "scores")))

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file holds."""
        return {"vectors": self.vectors, "own": self.own, "digests": self.digests, "scores": self.scores}

    def add(self, vectors: Tensor, digests: Tensor) -> None:
        """Look among new vectors, float [n, dim], for neighbours; a probe is no neighbour of itself."""
        for part, names in zip(torch.split(vectors, AT_ONCE), torch.split(digests, AT_ONCE), strict=True):
            scores = (self.vectors @ part.t()).masked_fill(self.own[:, None] == names, float("-inf"))
            every = names.expand(len(self.own), -1)
            self.scores, self.digests = merged(self.scores, self.digests, scores, every, DEPTH)
        self._sift(self.scores.isfinite())

    def remove(self, digests: Tensor) -> None:
        """Forget removed documents; where many go, fewer neighbours are known than before."""
        self._sift(~torch.isin(self.digests, digests))

    def _sift(self, kept: Tensor) -> None:
        """Keep some neighbours of each probe, as many of each as the one with fewest has."""
        count = int(kept.sum(dim=1).min()) if kept.numel() else 0
        order = (~kept).to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]
        self.scores, self.digests = self.scores.gather(1, order), self.digests.gather(1, order)
