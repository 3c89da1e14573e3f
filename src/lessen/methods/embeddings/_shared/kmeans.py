"""Weighted k-means for product quantisation: plain Lloyd steps, empty clusters put where the error is largest."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 65_536
MULTINOMIAL_MOST = 2**24
"""Categories that `torch.multinomial` takes."""


def draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` different positions int64, drawn with probabilities in proportion to positive weights [n]."""
    if len(weights) <= MULTINOMIAL_MOST:
        return torch.multinomial(weights.double(), count, generator=generator)
    # the first `count` of exponential arrivals at these rates: the same law (Efraimidis and Spirakis, 2006)
    arrivals = torch.empty(len(weights), dtype=torch.float64).exponential_(generator=generator).div_(weights)
    return arrivals.topk(count, largest=False).indices


def nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return (index int64 [n], squared distance [n]) of the centroid nearest to each point, in blocks of rows."""
    index, distance = [], []
    squares = centroids.square().sum(dim=1)
    for block in torch.split(points, BLOCK):
        scores = squares - 2.0 * block @ centroids.t()
        best = scores.min(dim=1)
        index.append(best.indices)
        distance.append((best.values + block.square().sum(dim=1)).clamp_(min=0.0))
    return torch.cat(index), torch.cat(distance)


def weighted_kmeans(
    points: Tensor, weights: Tensor, clusters: int, generator: torch.Generator, iterations: int = 25
) -> tuple[Tensor, Tensor]:
    """Return (centroids [clusters, width], index int64 [n]) that lower sum_i w_i ||x_i - c(x_i)||^2.

    Args:
        points: float32 [n, width], n >= 1. Some centroids repeat where distinct points are fewer than clusters.
        weights: float32 [n], positive.
    """
    if clusters > len(points):
        drawn = torch.multinomial(weights.double(), clusters, replacement=True, generator=generator)
    else:
        drawn = draw(weights, clusters, generator)
    centroids = points[drawn].clone()
    index, distance = nearest(points, centroids)
    for _ in range(iterations):
        totals = torch.zeros(clusters).index_add_(0, index, weights)
        sums = torch.zeros_like(centroids).index_add_(0, index, points * weights.unsqueeze(1))
        empty = totals == 0
        centroids = torch.where(empty.unsqueeze(1), centroids, sums / totals.clamp(min=1e-30).unsqueeze(1))
        if bool(empty.any()):
            worst = (weights * distance).topk(min(int(empty.sum()), len(points))).indices
            centroids[empty.nonzero()[: len(worst), 0]] = points[worst]
        moved, distance = nearest(points, centroids)
        if torch.equal(moved, index) and not bool(empty.any()):
            break
        index = moved
    return centroids, index
