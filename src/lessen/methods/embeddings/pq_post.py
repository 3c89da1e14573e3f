"""Product quantisation of trained tables, frequent rows first: no retraining below eight bytes a row."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.calibration import count_ids
from lessen.methods.embeddings._shared.budget import (
    TOLERANCE,
    check_share,
    share_field,
    share_out,
    size_of,
    table_bytes,
    targets,
)
from lessen.methods.embeddings._shared.kmeans import draw, nearest, weighted_kmeans
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, Site, module_bytes, replace, require, too_small
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.product_quantized import ProductQuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare
from lessen.task import Task


class ProductQuantTables(ModuleMethod):
    """Cut rows into groups of columns and store the nearest centroid of each, by frequency-weighted k-means.

    Source: product quantisation, Jegou et al. 2011, as a post-training table compressor in the VLDB 2024 study
    (arXiv 2311.15578). Rows weigh their count in the train split + 0.1: unweighted centroids follow the mass of rare,
    barely trained rows. `hot` keeps the most frequent rows exact beside the codes. The finest codes that fit a given
    `share` are taken and what is left of the bytes goes to hot rows. Differences: the learned rotation (OPQ) and the
    magnitude tiers are left out; large tables are clustered on a weighted sample.
    """

    card = Card(
        name="emb-pq-post",
        family="embeddings",
        summary="Store a few centroid codes for each row, fitted to the frequent rows after training.",
        acts_on=TABLES,
        source="Jegou et al. 2011; arXiv 2311.15578",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    share: float | None = share_field("groups, centroids and hot")
    groups: int | None = Field(None, ge=1, le=4096, description="groups of columns; none: one for every two columns")
    centroids: int = Field(16, ge=2, le=256, description="centroids of a group; up to 16 take 4 bits, more take 8")
    hot: float = Field(0.0, ge=0, le=0.5, description="share of rows, the most frequent, kept exact")
    sample: int = Field(65536, ge=256, le=10**7, description="rows that k-means learns from, drawn by weight")
    fine_tune_epochs: int = Field(0, ge=0, le=1000, description="epochs of training codebooks and model, codes fixed")
    min_rows: int = Field(200, ge=2, le=10**9, description="smaller tables stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Count, cluster and replace. Raises NothingMatchedError; BudgetError when the share cannot be reached."""
        made = (ProductQuantizedEmbedding, TieredEmbedding)
        sites = self.eligible(model, TABLES, context, self._reject, made)
        before = table_bytes(model)
        replaced = []
        for site, counts, plan in zip(sites, count_ids(model, task, sites), self._plans(model, sites), strict=True):
            new = self._quantise(site, counts, plan, context)
            if new is not None:
                model = replace(model, site, new)
                replaced.append(site)
        require(replaced, self, model, context)
        if self.share is not None:
            reached = check_share(table_bytes(model), before, self.share, self.card.name)
            context.findings["share"] = round(reached, 5)
        if self.fine_tune_epochs:
            retrain.fine_tune(model, task, context, epochs=self.fine_tune_epochs)
        return model

    def _reject(self, table: Any) -> str | None:
        if table.embedding_dim == 1:
            return "has one column (first-order weights)"
        return too_small(table, self.min_rows)

    def _plans(self, model: nn.Module, sites: list[Site]) -> list[tuple[int, int, int]]:
        """Return groups, centroids and hot rows of each site."""
        shapes = [TableShape.of(site.module) for site in sites]
        if self.share is None:
            return [(*self._codes(shape), round(self.hot * shape.rows)) for shape in shapes]
        sizes = [module_bytes(site.module) for site in sites]

        def plan(number: int, target: int) -> tuple[int, int, int]:
            groups, centroids = finest(shapes[number], target)
            return groups, centroids, _hot_rows(shapes[number], groups, centroids, target)

        def weigh(number: int, made: tuple[int, int, int]) -> int:
            return min(sizes[number], size_of(lambda: _twin(shapes[number], *made)))

        slack = TOLERANCE * self.share * table_bytes(model)
        return share_out(sizes, targets(model, sites, self.share), slack, plan, weigh)

    def _quantise(
        self, site: Site, counts: Tensor, plan: tuple[int, int, int], context: Context
    ) -> StoredEmbedding | None:
        shape, (groups, centroids, hot) = TableShape.of(site.module), plan
        before, after = module_bytes(site.module), size_of(lambda: _twin(shape, groups, centroids, hot))
        if after >= before:
            context.findings.setdefault("skipped", {})[site.path] = f"would take {after} bytes instead of {before}"
            return None
        weight, weights = site.module.weight.detach().float(), counts.float() + 0.1
        order = torch.argsort(counts, descending=True, stable=True)
        if hot:
            weights[order[:hot]] = 1e-6  # rows kept exact need no centroid
        codes, codebook = fit_codes(weight, weights, groups, centroids, self.sample, context.generator)
        context.findings.setdefault("tables", {})[site.path] = {
            "bytes": after,
            "groups": groups,
            "centroids": centroids,
            "hot": hot,
        }
        if not hot:
            return ProductQuantizedEmbedding.from_codes(shape, codes, codebook)
        made = TieredEmbedding(shape, hot, ProductQuantizedEmbedding.from_codes(bare(shape), codes, codebook))
        kept = order[:hot].sort().values
        made.fill_hot(kept, weight[kept])
        return made

    def _codes(self, shape: TableShape) -> tuple[int, int]:
        groups = self.groups or max(1, shape.dim // 2)
        return min(groups, shape.dim), min(self.centroids, shape.rows)


def _hot_rows(shape: TableShape, groups: int, centroids: int, target: int) -> int:
    """Return how many exact rows fit into what the codes leave of `target` bytes."""
    left = target - size_of(lambda: _twin(shape, groups, centroids, 0))
    return min(max(0, round(left / (4 * shape.dim + 4))), shape.rows - 1)


def _twin(shape: TableShape, groups: int, centroids: int, hot: int) -> StoredEmbedding:
    table = ProductQuantizedEmbedding(bare(shape), groups, centroids)
    return TieredEmbedding(shape, hot, table) if hot else table


def finest(shape: TableShape, target: int) -> tuple[int, int]:
    """Return the (groups, centroids) with the most bits a row that fit into `target` bytes; the coarsest if none do.

    Fewer, larger groups are taken at equal bytes: 8 bit codes describe a group jointly.
    """
    choices = [
        (size_of(lambda g=groups, c=centroids: _twin(shape, g, c, 0)), centroids, groups)  # type: ignore[misc]
        for centroids in (16, 64, 256)
        if centroids < shape.rows
        for groups in range(1, shape.dim + 1)
    ]
    fitting = [choice for choice in choices if choice[0] <= target]
    _, centroids, groups = max(fitting) if fitting else min(choices)
    return groups, centroids


def fit_codes(
    weight: Tensor, weights: Tensor, groups: int, centroids: int, sample: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return codes int64 [rows, groups] and codebooks float32 [groups, centroids, width] of a table [rows, dim]."""
    rows, dim = weight.shape
    width = -(-dim // groups)
    padded = torch.cat([weight, weight.new_zeros(rows, groups * width - dim)], dim=1)
    chosen = torch.arange(rows)
    if rows > sample:
        chosen = draw(weights, sample, generator)
    codes, codebooks = [], []
    for group in torch.split(padded, width, dim=1):
        codebook, _ = weighted_kmeans(group[chosen], weights[chosen], centroids, generator)
        codes.append(nearest(group, codebook)[0])
        codebooks.append(codebook)
    return torch.stack(codes, dim=1), torch.stack(codebooks)
