"""Vectors as product codes: consecutive groups of numbers, each the nearest of up to 256 centres, one byte a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.vectors.index import VectorIndex

SAMPLE = 65_536
"""Vectors that centres are learned from at most."""
ROUNDS = 25
AT_ONCE = 1 << 24
"""Distances that are held together."""


@stored
class ProductVectors(VectorIndex):
    """State, a row: `codes` uint8 [rows, groups]; shared: `centres` float32 [groups, 256, dim / groups].

    Product quantisation (Jegou, Douze and Schmid 2011) with asymmetric products: a query is not rounded; its products
    with all centres are looked up by the codes.
    """

    kind = "product-vectors"
    per_row = ("codes",)
    codes: Tensor
    centres: Tensor

    def __init__(self, rows: int, dim: int, groups: int) -> None:
        super().__init__(rows, dim)
        self.groups = checks.whole("groups", groups, 1, self.dim)
        if self.dim % self.groups:
            raise ValueError(f"{self.dim} numbers cannot be cut into {self.groups} equal groups")
        self.register_buffer("codes", torch.zeros(self.rows, self.groups, dtype=torch.uint8))
        self.register_buffer("centres", torch.zeros(self.groups, 256, self.dim // self.groups))

    @classmethod
    def fitted(cls, sample: Tensor, seed: int = 0, **sizes: Any) -> ProductVectors:
        """Return an index without rows whose centres are means of a sample, float [n, dim], by Lloyd's rounds."""
        made = cls(0, sample.shape[1], **sizes)
        generator = torch.Generator().manual_seed(seed)
        chosen = sample[torch.randperm(len(sample), generator=generator)[:SAMPLE]].float()
        if len(chosen):
            parts = chosen.view(len(chosen), made.groups, -1).transpose(0, 1)
            for group, points in enumerate(parts):
                made.centres[group] = _means(points.contiguous(), generator)
        return made

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {**super().config(), "groups": self.groups}

    def encode(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return the nearest centre of each group of float vectors [n, dim]."""
        parts = vectors.view(len(vectors), self.groups, -1).transpose(0, 1)
        codes = [_nearest(part, own) for part, own in zip(parts, self.centres, strict=True)]
        return {"codes": torch.stack(codes, dim=1).to(torch.uint8)}

    def scores_of(self, queries: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """Return inner products with the centres that codes name, float32 [B, n]."""
        parts = queries.view(len(queries), self.groups, -1)
        known = torch.einsum("bgw,gcw->gcb", parts, self.centres).reshape(self.groups * 256, -1).contiguous()
        places = rows["codes"].int() + 256 * torch.arange(self.groups, dtype=torch.int32)
        return torch.nn.functional.embedding_bag(places, known, mode="sum").t()

    def dequantise(self) -> Tensor:
        """Return the centres that codes name, float32 [rows, dim]."""
        groups = torch.arange(self.groups)
        return self.centres[groups, self.codes.long()].reshape(self.rows, self.dim)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the number of the nearest centre of each point [n, w], int64 [n]."""
    half = centres.pow(2).sum(dim=1) / 2
    step = max(1, AT_ONCE // len(centres))
    return torch.cat([(part @ centres.t() - half).argmax(dim=1) for part in torch.split(points, step)])


def _means(points: Tensor, generator: torch.Generator) -> Tensor:
    """Return 256 centres of points [n, w]; a centre without points moves beside the one with most."""
    first = torch.randperm(len(points), generator=generator)[:256]
    if len(first) < 256:  # fewer points than centres: the rest repeat
        first = first.repeat(-(-256 // len(first)))[:256]
    centres = points[first].clone()
    for _ in range(ROUNDS):
        owner = _nearest(points, centres)
        counts = torch.bincount(owner, minlength=256)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        empty = (counts == 0).nonzero()[:, 0]
        most = counts.argsort(descending=True, stable=True)[: len(empty)]
        moved[empty] = moved[most] * (1 + 1e-3 * torch.randn(len(empty), 1, generator=generator))
        centres = moved
    return centres
