"""Row pruning: rows that are rare and close to their field's mean give way to one shared row."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context, Method
from lessen.methods.calibration import count_ids
from lessen.methods.sites import TABLES, Site, blocks, find, replace, require, too_small
from lessen.stored.embedding import TableShape
from lessen.stored.fields import Segment
from lessen.stored.pruned_embedding import PrunedEmbedding
from lessen.task import Task


class PruneRows(Method):
    """Keep the rows with the largest frequency x magnitude; every other id reads its field's fallback row.

    Score of a row: (times looked up in the train split) x (distance of the row to the fallback), the error that
    dropping it causes, summed over examples. Fallbacks: "mean" is the frequency-weighted mean of the field's dropped
    rows, which makes that error least; "oov" the first row of the field, where our flat table keeps its
    out-of-vocabulary id; "zero" a zero row. Rows are ranked over all fields at once; padding and fields of fewer than
    `min_rows` rows stay whole. The id map is int32 and is counted: rows of d values cost 4 bytes more each.

    Source: magnitude pruning of embedding rows with frequency weights, as in the survey arXiv 2408.02304, section 4.
    """

    card = Card(
        name="emb-prune-rows",
        family="embeddings",
        summary="Drop rare rows close to their field's mean; their ids share one fallback row.",
        acts_on=TABLES,
        source="arXiv 2408.02304 (survey), pruning of rows by magnitude and frequency",
        needs=frozenset({"calibration"}),
        frees=frozenset({"bytes"}),
        tags=frozenset({"post-training", "tables"}),
    )
    keep: float = Field(0.5, gt=0, lt=1, description="share of a table's rows to keep")
    fallback: Literal["mean", "oov", "zero"] = Field("mean", description="what dropped ids read")
    min_rows: int = Field(200, ge=2, le=10**9, description="fields with fewer rows keep them all")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Count, rank and drop. Raises NothingMatchedError."""
        sites = require(find(model, TABLES, context, self._reject, (PrunedEmbedding,)), self, model, context)
        for site, counts in zip(sites, count_ids(model, task, sites), strict=True):
            pruned = self._prune(site, counts)
            context.findings.setdefault("tables", {})[site.path] = {
                "rows": pruned.kept, "of": site.module.num_embeddings,
                "lookups_kept": _share(counts, pruned.position, pruned.kept - len(blocks(pruned.shape))),
            }  # fmt: skip
            model = replace(model, site, pruned)
        return model

    def _reject(self, table: Any) -> str | None:
        rows, width = table.num_embeddings, table.embedding_dim * table.weight.element_size()
        fallbacks = len(blocks(TableShape.of(table)))
        if (self._kept_rows(rows) + fallbacks) * width + 4 * rows >= rows * width:
            return "the kept rows and the id map would take no fewer bytes"
        return too_small(table, self.min_rows)

    def _kept_rows(self, rows: int) -> int:
        return max(1, round(self.keep * rows))

    def _prune(self, site: Site, counts: Tensor) -> PrunedEmbedding:
        shape = TableShape.of(site.module)
        weight = site.module.weight.detach().float()
        score = torch.zeros(shape.rows, dtype=torch.float64)
        for block in blocks(shape):
            rows = slice(block.start, block.start + block.rows)
            if block.name == "" or block.rows < self.min_rows:
                score[rows] = torch.inf
            else:
                centre = self._fallback(weight[rows], counts[rows])
                score[rows] = counts[rows].double() * (weight[rows] - centre).norm(dim=1).double()
        if shape.padding_idx is not None:
            score[shape.padding_idx] = torch.inf
        kept = torch.argsort(score, descending=True, stable=True)[: self._kept_rows(shape.rows)].sort().values
        return self._build(shape, weight, counts, kept)

    def _build(self, shape: TableShape, weight: Tensor, counts: Tensor, kept: Tensor) -> PrunedEmbedding:
        position = torch.full((shape.rows,), -1, dtype=torch.int32)
        position[kept] = torch.arange(len(kept), dtype=torch.int32)
        fallbacks = []
        for number, block in enumerate(blocks(shape)):
            own = position[block.start : block.start + block.rows]  # a view: filled below
            dropped = own < 0
            fallbacks.append(self._fallback_row(weight, counts, block, dropped))
            own[dropped] = len(kept) + number
        return PrunedEmbedding.from_dense(shape, torch.cat([weight[kept], torch.stack(fallbacks)]), position)

    def _fallback_row(self, weight: Tensor, counts: Tensor, block: Segment, dropped: Tensor) -> Tensor:
        rows = weight[block.start : block.start + block.rows]
        if self.fallback == "oov" or not bool(dropped.any()):
            return rows[0]
        return self._fallback(rows[dropped], counts[block.start : block.start + block.rows][dropped])

    def _fallback(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Return the row that stands for `rows`: their weighted mean, the first of them, or zeros."""
        if self.fallback == "zero":
            return torch.zeros(rows.shape[1])
        if self.fallback == "oov":
            return rows[0]
        shares = counts.double() if int(counts.sum()) else torch.ones(len(rows), dtype=torch.float64)
        return ((shares / shares.sum()) @ rows.double()).float()


def _share(counts: Tensor, position: Tensor, kept: int) -> float:
    """Return the share of train lookups that still read a row of their own."""
    total = int(counts.sum())
    return round(float(counts[position < kept].sum()) / total, 4) if total else 0.0
