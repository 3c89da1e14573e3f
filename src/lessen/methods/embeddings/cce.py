"""Clustered compositional embeddings: rows share clusters that are found again after each epoch of training."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import TOLERANCE, size_of, solve
from lessen.methods.embeddings._shared.kmeans import nearest, weighted_kmeans
from lessen.methods.embeddings._shared.retrained import RetrainedTables, Wanted, largest_divisor, spread
from lessen.methods.sites import TABLES
from lessen.stored.tables.clustered_embedding import ClusteredEmbedding
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.train.hooks import Hook


class ClusteredTables(RetrainedTables):
    """Each chunk of a row is a cluster centre plus a hashed correction; after each of the first epochs the rows are
    clustered anew, corrections become mean residuals under a fresh hash, and training goes on.

    Source: Clustered Compositional Embeddings, NeurIPS 2023 (arXiv 2210.05974), the readable relative of clustered
    embedding learning (CEL, WWW 2023, arXiv 2302.01478). Codes take one byte a chunk and the hash is regenerated
    from two constants, where the reference keeps eight int64 indices for each id. Differences: the optimiser's moments
    of the two tables are kept over a clustering, at most 256 clusters.
    """

    card = Card(
        name="emb-cce",
        family="embeddings",
        summary="Let rows share cluster centres, found again during training, plus a hashed correction.",
        acts_on=TABLES,
        source="NeurIPS 2023, arXiv 2210.05974; WWW 2023, arXiv 2302.01478",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (ClusteredEmbedding,)
    chunks: int = Field(4, ge=1, le=64, description="pieces of a row; the largest divisor of the width up to this")
    clusters: int = Field(64, ge=2, le=256, description="cluster centres, and corrections, of each piece")
    clusterings: int = Field(3, ge=0, le=100, description="epochs after which rows are clustered anew")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:
        """Return a clustered table with random codes."""
        shape = wanted.shape
        chunks = largest_divisor(shape.dim, self.chunks)
        clusters = min(self.clusters, shape.rows)
        if wanted.target is not None:
            chunks, clusters = self._sizes(shape, wanted.target)
        made = ClusteredEmbedding(shape, chunks, clusters)
        made.reset(spread(wanted.table), context.generator)
        return made

    def _sizes(self, shape: TableShape, target: int) -> tuple[int, int]:
        """Return the (chunks, clusters) that take `target` bytes, or come nearest to it.

        Codes may take half of the bytes and `chunks` pieces at most; where that misses, every division is tried.
        """
        divisors = [count for count in range(shape.dim, 0, -1) if shape.dim % count == 0]
        usual = [count for count in divisors if count <= self.chunks and shape.rows * count <= target / 2]
        sizes = {}
        for chunks in [*(usual[:1] or [1]), *divisors]:
            size = partial(_bytes, shape, chunks)
            clusters = solve(size, 2, min(256, shape.rows), target)
            sizes[chunks, clusters] = abs(size(clusters) - target)
            if sizes[chunks, clusters] <= TOLERANCE * target:
                return chunks, clusters
        return min(sizes, key=lambda choice: sizes[choice])

    def training_hooks(self, context: Context) -> tuple[Hook, ...]:
        """Return the hook that clusters."""
        return (Clustering(self.clusterings, context.seed),)


def _bytes(shape: TableShape, chunks: int, clusters: int) -> int:
    return size_of(lambda: ClusteredEmbedding(shape, chunks, clusters))


class Clustering(Hook):
    """Clusters every clustered table after each of the first epochs."""

    def __init__(self, times: int, seed: int) -> None:
        self.times = times
        self.generator = torch.Generator().manual_seed(seed)

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Cluster, unless it was done often enough."""
        if epoch <= self.times:
            for module in model.modules():
                if isinstance(module, ClusteredEmbedding):
                    recluster(module, self.generator)


@torch.no_grad()
def recluster(table: ClusteredEmbedding, generator: torch.Generator) -> None:
    """Give each row the centre nearest to what it is now, and each correction the mean of the residuals it serves."""
    ids = torch.arange(table.num_embeddings)
    now = table.lookup(ids).view(len(ids), table.chunks, -1)
    table.draw_hash(generator)
    corrections = table.correction_rows(ids)
    sample = ids
    if len(ids) > 200 * table.clusters:
        sample = torch.randperm(len(ids), generator=generator)[: 200 * table.clusters]
    for chunk in range(table.chunks):
        points = now[:, chunk].contiguous()
        centres, _ = weighted_kmeans(points[sample], torch.ones(len(sample)), table.clusters, generator)
        codes, _ = nearest(points, centres)
        table.codes[:, chunk] = codes.to(torch.uint8)
        rows = slice(chunk * table.clusters, (chunk + 1) * table.clusters)
        table.centres.weight[rows] = centres
        table.corrections.weight[rows] = _means(points - centres[codes], corrections[:, chunk], table.clusters)


def _means(rows: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return the mean of the rows [n, width] of each group, zeros where it has none, [count, width]."""
    sums = torch.zeros(count, rows.shape[1]).index_add_(0, groups, rows)
    return sums / torch.bincount(groups, minlength=count).clamp(min=1).unsqueeze(1)
