"""Vectors of two towers side by side, each part on fewer directions, of length 1 and weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.vectors.index import VectorIndex


@stored
class FusedVectors(VectorIndex):
    """State: `vectors` float32 [rows, left + right]; shared: `mean` [dim], `first` [split, left], `second` [.., right].

        x [dim] --split--> x1 - mean --first--> length sqrt(alpha)     --.
                           x2 - mean --second-> length sqrt(1 - alpha) --+--> [left + right]

    Products of what comes out are alpha times one cosine plus 1 - alpha times the other. Queries go the same way.
    """

    kind = "fused-vectors"
    per_row = ("vectors",)
    vectors: Tensor
    mean: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, rows: int, dim: int, split: int, left: int, right: int, alpha: float) -> None:
        super().__init__(rows, dim)
        self.split = checks.whole("split", split, 1, self.dim - 1)
        self.left = checks.whole("left", left, 1, self.split)
        self.right = checks.whole("right", right, 1, self.dim - self.split)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie between 0 and 1, found {alpha!r}")
        self.alpha = float(alpha)
        self.register_buffer("vectors", torch.zeros(self.rows, self.left + self.right))
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("first", torch.zeros(self.split, self.left))
        self.register_buffer("second", torch.zeros(self.dim - self.split, self.right))

    @classmethod
    def fitted(cls, sample: Tensor, seed: int = 0, **sizes: Any) -> FusedVectors:  # noqa: ARG003 - nothing is drawn
        """Return an index without rows whose directions hold most of a sample's variance, float [n, dim].

        Args:
            sizes: split, left, right, alpha.
        """
        made = cls(0, sample.shape[1], **sizes)
        made.mean.copy_(sample.double().mean(dim=0))
        centred = sample.double() - sample.double().mean(dim=0)
        for part, basis in ((centred[:, : made.split], made.first), (centred[:, made.split :], made.second)):
            basis.copy_(torch.linalg.eigh(part.t() @ part)[1].flip(1)[:, : basis.shape[1]])
        return made

    def config(self) -> dict[str, Any]:
        """Return sizes and the weight of the first tower."""
        own = {"split": self.split, "left": self.left, "right": self.right, "alpha": self.alpha}
        return {**super().config(), **own}

    def fuse(self, vectors: Tensor) -> Tensor:
        """Return float32 [n, left + right], of length 1, for float [n, dim]."""
        centred = vectors.float() - self.mean
        parts = centred[:, : self.split] @ self.first, centred[:, self.split :] @ self.second
        weights = math.sqrt(self.alpha), math.sqrt(1 - self.alpha)
        return torch.cat([w * F.normalize(part, dim=1) for w, part in zip(weights, parts, strict=True)], dim=1)

    def encode(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return the fused rows of float vectors [n, dim]."""
        return {"vectors": self.fuse(vectors)}

    def scores_of(self, queries: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Return the weighed means of both cosines, float32 [B, n]."""
        return self.fuse(queries) @ rows["vectors"].t()

    def dequantise(self) -> Tensor:
        """Return the fused vectors, float32 [rows, left + right]."""
        return self.vectors
