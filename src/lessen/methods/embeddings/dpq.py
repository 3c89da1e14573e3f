"""Product quantisation trained end to end: DPQ, and MGQE where rare ids may use fewer centroids."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import TOLERANCE, size_of
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings._shared.trained_form import TrainedQuantizer, TrainingForm
from lessen.methods.embeddings.pq_post import fit_codes
from lessen.methods.sites import TABLES
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.tables.product_quantized import ProductQuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare


class CodebookTable(TrainingForm):
    """Query rows and codebooks; every lookup answers with centroids, gradients pass straight to the queries.

    Ids from place `head` on in the order of frequency may use the first `tail` centroids of each group only.
    """

    rank: Tensor

    def __init__(self, shape: TableShape, weight: Tensor, codebook: Tensor, rank: Tensor, head: int, tail: int) -> None:
        super().__init__(shape)
        self.groups, self.centroids, self.width = codebook.shape
        self.head, self.tail = head, tail
        padding = weight.new_zeros(shape.rows, self.groups * self.width - shape.dim)
        self.queries = inner_table(shape.rows, self.groups * self.width, torch.cat([weight, padding], dim=1))
        self.codebook = inner_table(self.groups * self.centroids, self.width, codebook.reshape(-1, self.width).clone())
        self.register_buffer("rank", rank)
        self._loss: Tensor | None = None

    def _codes(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Return the nearest allowed centroid of each group, int64 [n, groups]."""
        parts = queries.detach().view(-1, self.groups, self.width).transpose(0, 1)
        book = self.codebook.weight.detach().view(self.groups, self.centroids, self.width)
        scores = book.square().sum(-1).unsqueeze(1) - 2.0 * torch.bmm(parts, book.transpose(1, 2))
        if self.tail < self.centroids:
            rare = self.rank[ids] >= self.head
            scores[:, :, self.tail :] = scores[:, :, self.tail :].masked_fill(rare.view(1, -1, 1), torch.inf)
        return scores.argmin(dim=2).t()

    def lookup(self, ids: Tensor) -> Tensor:
        """Return centroids: [*] to float32 [*, dim]; padding gives zeros."""
        flat = ids.reshape(-1)
        queries = self.queries(flat)
        base = torch.arange(self.groups, device=ids.device) * self.centroids
        centres = self.codebook(self._codes(queries, flat) + base).flatten(1)
        if self.training:
            self._loss = (centres - queries.detach()).square().mean()
        rows: Tensor = (queries + (centres - queries).detach())[:, : self.embedding_dim]
        rows = rows.reshape(*ids.shape, self.embedding_dim)
        if self.padding_idx is None:
            return rows
        return rows.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)

    def penalty(self) -> Tensor | None:
        """Return the mean squared distance of centroids to the queries of the last step."""
        loss, self._loss = self._loss, None
        return loss

    @torch.no_grad()
    def stored(self) -> StoredEmbedding:
        """Return codes and codebook; head and tail as two tiers when their codes differ."""
        ids = torch.arange(self.shape.rows)
        codes = torch.cat([self._codes(self.queries(part), part) for part in torch.split(ids, 65_536)])
        book = self.codebook.weight.detach().view(self.groups, self.centroids, self.width)
        if self.tail == self.centroids:
            return ProductQuantizedEmbedding.from_codes(self.shape, codes, book)
        hot = (self.rank < self.head).nonzero()[:, 0]
        cold_codes = codes.clamp(max=self.tail - 1)
        cold = ProductQuantizedEmbedding.from_codes(bare(self.shape), cold_codes, book[:, : self.tail])
        own = TableShape(len(hot), self.shape.dim)
        made = TieredEmbedding(self.shape, len(hot), cold, ProductQuantizedEmbedding.from_codes(own, codes[hot], book))
        made.hot_ids.copy_(hot)
        return made


class DifferentiablePQTables(TrainedQuantizer):
    """Learn codes and codebooks with the task's loss: out = centroid, gradient straight through to the query row.

    Source: DPQ, ICML 2020 (arXiv 1908.09756), the centroid form (DPQ-VQ): codebook loss mean ||c - sg(q)||^2, weight
    1. Started from the given model by frequency-weighted k-means, which the paper allows and which avoids collapsed
    codebooks. Differences: no batch norm before the argmin (the centroid form needs none), the softmax form is left
    out, codes are recomputed for all ids at the end.
    """

    card = Card(
        name="emb-dpq",
        family="embeddings",
        summary="Learn product-quantised codes and codebooks with the task's loss.",
        acts_on=TABLES,
        source="ICML 2020, arXiv 1908.09756",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (ProductQuantizedEmbedding, TieredEmbedding)
    codebooks: ClassVar[tuple[int, ...]] = (16, 64, 256)
    """Centroids that a share may need in place of the given number."""
    counts_ids = True
    groups: int | None = Field(None, ge=1, le=4096, description="groups of columns; none: one for every two columns")
    centroids: int = Field(16, ge=2, le=256, description="centroids of a group; up to 16 take 4 bits, more take 8")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:
        """Return the training form, its codebook fitted to the table it starts from."""
        shape = wanted.shape
        head, tail = self.tiers(shape)
        groups, centroids = min(self.groups or max(1, shape.dim // 2), shape.dim), min(self.centroids, shape.rows)
        if wanted.target is not None:
            groups, centroids = self.sizes_for(shape, head, tail, wanted.target)
        assert wanted.counts is not None
        weight = wanted.table.weight.detach().float()
        _, book = fit_codes(weight, wanted.counts.float() + 0.1, groups, centroids, 65_536, context.generator)
        order = torch.argsort(wanted.counts, descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        return CodebookTable(shape, weight, book, rank, head, min(tail, centroids))

    def tiers(self, shape: TableShape) -> tuple[int, int]:
        """Return how many ids are head, and the centroids that the others may use."""
        return shape.rows, 256

    def sizes_for(self, shape: TableShape, head: int, tail: int, target: int) -> tuple[int, int]:
        """Return the (groups, centroids) whose stored size comes nearest to `target`.

        Other centroids than the method's own are tried only where no number of groups brings these within reach.
        """
        sizes: dict[tuple[int, int], int] = {}
        for centroids in (self.centroids, *self.codebooks):
            fitting = min(centroids, shape.rows)
            for groups in range(1, shape.dim + 1):
                made = size_of(partial(_empty, shape, groups, fitting, head, tail))
                sizes.setdefault((groups, fitting), abs(made - target))
            if min(sizes.values()) <= TOLERANCE * target:
                break
        return min(sizes, key=lambda choice: sizes[choice])

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return the sizes of the codes."""
        assert isinstance(made, CodebookTable)
        return {"groups": made.groups, "centroids": made.centroids, "head": made.head, "tail": made.tail}


def _empty(shape: TableShape, groups: int, centroids: int, head: int, tail: int) -> StoredEmbedding:
    if tail >= centroids:
        return ProductQuantizedEmbedding(shape, groups, centroids)
    hot = ProductQuantizedEmbedding(TableShape(head, shape.dim), groups, centroids)
    return TieredEmbedding(shape, head, ProductQuantizedEmbedding(bare(shape), groups, tail), hot)


class MultiGranularTables(DifferentiablePQTables):
    """DPQ in which only frequent ids see all centroids; the others share the first few of the same codebook.

    Source: MGQE, WWW 2020 companion (arXiv 2002.08530), variable centroids over one codebook, two tiers. Stored as
    two tiers: byte codes for the head beside a list of its ids, 4 bit codes for the tail, the shared prefix of the
    codebook twice (16 rows). Differences: tiers are cut over the whole table, not field by field.
    """

    card = Card(
        name="emb-mgqe",
        family="embeddings",
        summary="Learn product-quantised codes with fewer centroids for rare ids.",
        acts_on=TABLES,
        source="WWW 2020 companion, arXiv 2002.08530",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    codebooks = (32, 64, 128, 256)
    centroids: int = Field(64, ge=17, le=256, description="centroids that frequent ids choose from")
    tail: int = Field(16, ge=2, le=16, description="centroids that the other ids choose from")
    head: float = Field(0.1, gt=0, lt=1, description="share of ids that count as frequent")

    def tiers(self, shape: TableShape) -> tuple[int, int]:
        """Return how many ids are head, and the centroids that the others may use."""
        return max(1, round(self.head * shape.rows)), self.tail
