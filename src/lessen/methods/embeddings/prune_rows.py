"""Row pruning: rows that are rare and close to their field's mean give way to one shared row."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.calibration import count_ids
from lessen.methods.embeddings._shared.budget import check_share, share_field, size_of, solve, table_bytes, targets
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, Site, blocks, module_bytes, replace, require, too_small
from lessen.stored.fields import Segment
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.fallback_embedding import FallbackEmbedding
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare
from lessen.task import Task


class PruneRows(ModuleMethod):
    """Keep the rows with the largest frequency x squared distance to their field's fallback; others read the fallback.

    That score is the squared error which dropping the row causes, summed over the lookups of the train split and
    divided by the lookups of the field (a history of twenty items a row would otherwise drown the users). Fallbacks:
    "mean" is the plain mean of the dropped rows (weighted by frequency it was worse on held-out data), "oov" the
    first row of the field, where our flat table keeps its out-of-vocabulary id, "zero" a zero row. Rows are ranked
    over all fields at once; padding and fields of fewer than `min_rows` rows stay whole.

    Index: "map" is an int32 for every id (fast, 4 bytes an id); "sorted" lists the kept ids (4 bytes a kept row;
    at run time a bit an id finds them); "auto" takes the map unless it would fill a quarter of the share asked for.

    Source: magnitude pruning of embedding rows with frequency weights, as in the survey arXiv 2408.02304, section 4.
    """

    card = Card(
        name="emb-prune-rows",
        family="embeddings",
        summary="Drop rare rows close to their field's mean; their ids share one fallback row.",
        acts_on=TABLES,
        source="arXiv 2408.02304 (survey), pruning of rows by magnitude and frequency",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    share: float | None = share_field("keep")
    keep: float = Field(0.5, gt=0, lt=1, description="share of a table's rows to keep")
    fallback: Literal["mean", "oov", "zero"] = Field("mean", description="what dropped ids read")
    index: Literal["auto", "map", "sorted"] = Field("auto", description="how an id finds its row: by map or search")
    fine_tune_epochs: int = Field(0, ge=0, le=1000, description="epochs of training after the pruning")
    min_rows: int = Field(200, ge=2, le=10**9, description="fields with fewer rows keep them all")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Count, rank and drop. Raises NothingMatchedError; BudgetError when the share cannot be reached."""
        made = (PrunedEmbedding, TieredEmbedding)
        sites = self.eligible(model, TABLES, context, self._reject, made)
        before = table_bytes(model)
        allowed = targets(model, sites, self.share) if self.share is not None else [None] * len(sites)
        replaced = []
        for site, counts, target in zip(sites, count_ids(model, task, sites), allowed, strict=True):
            new = self._prune(site, counts, target, context)
            if new is not None:
                model = replace(model, site, new)
                replaced.append(site)
        require(replaced, self, model, context)
        if self.share is not None:
            context.findings["share"] = round(check_share(table_bytes(model), before, self.share, self.card.name), 5)
        if self.fine_tune_epochs:
            retrain.fine_tune(model, task, context, epochs=self.fine_tune_epochs)
        return model

    def _reject(self, table: Any) -> str | None:
        return too_small(table, self.min_rows)

    def _prune(self, site: Site, counts: Tensor, target: int | None, context: Context) -> StoredEmbedding | None:
        shape = TableShape.of(site.module)
        index, rows = self._plan(shape, target)
        before, after = module_bytes(site.module), size_of(lambda: _empty(shape, index, rows))
        if after >= before:
            context.findings.setdefault("skipped", {})[site.path] = f"would take {after} bytes instead of {before}"
            return None
        weight = site.module.weight.detach().float()
        score = self._scores(shape, weight, counts)
        kept = torch.argsort(score, descending=True, stable=True)[:rows].sort().values
        own = torch.zeros(shape.rows, dtype=torch.bool)
        own[kept] = True
        seen = int(counts.sum())
        context.findings.setdefault("tables", {})[site.path] = {
            "rows": rows,
            "of": shape.rows,
            "index": index,
            "lookups_kept": round(float(counts[own].sum()) / seen, 4) if seen else 0.0,
        }
        return self._build(shape, weight, kept, index)

    def _plan(self, shape: TableShape, target: int | None) -> tuple[str, int]:
        """Return the index and the rows to keep."""
        if target is None:
            return "sorted" if self.index == "sorted" else "map", max(1, round(self.keep * shape.rows))
        index = self.index
        if index == "auto":
            index = "sorted" if 4 * shape.rows > target / 4 else "map"
        return index, solve(lambda rows: size_of(lambda: _empty(shape, index, rows)), 1, shape.rows - 1, target)

    def _scores(self, shape: TableShape, weight: Tensor, counts: Tensor) -> Tensor:
        score = torch.full((shape.rows,), torch.inf, dtype=torch.float64)
        for block in blocks(shape):
            rows = slice(block.start, block.start + block.rows)
            if block.name != "" and block.rows >= self.min_rows:
                distance = (weight[rows] - self._fallback(weight[rows])).double().square().sum(dim=1)
                score[rows] = counts[rows] / counts[rows].sum().clamp(min=1) * distance
        if shape.padding_idx is not None:
            score[shape.padding_idx] = torch.inf
        return score

    def _build(self, shape: TableShape, weight: Tensor, kept: Tensor, index: str) -> StoredEmbedding:
        dropped = torch.ones(shape.rows, dtype=torch.bool)
        dropped[kept] = False
        fallbacks = torch.stack([self._fallback_of(weight, block, dropped) for block in blocks(shape)])
        if index == "sorted":
            made = TieredEmbedding(shape, len(kept), FallbackEmbedding.from_rows(bare(shape), fallbacks))
            made.fill_hot(kept, weight[kept])
            return made
        position = torch.empty(shape.rows, dtype=torch.int32)
        for number, block in enumerate(blocks(shape)):
            position[block.start : block.start + block.rows] = len(kept) + number
        position[kept] = torch.arange(len(kept), dtype=torch.int32)
        return PrunedEmbedding.from_dense(shape, torch.cat([weight[kept], fallbacks]), position)

    def _fallback_of(self, weight: Tensor, block: Segment, dropped: Tensor) -> Tensor:
        rows = slice(block.start, block.start + block.rows)
        if self.fallback == "oov" or not bool(dropped[rows].any()):
            return weight[block.start]
        return self._fallback(weight[rows][dropped[rows]])

    def _fallback(self, rows: Tensor) -> Tensor:
        """Return the row that stands for `rows`: their mean, the first of them, or zeros."""
        if self.fallback == "zero":
            return torch.zeros(rows.shape[1])
        return rows[0] if self.fallback == "oov" else rows.mean(dim=0)


def _empty(shape: TableShape, index: str, rows: int) -> StoredEmbedding:
    if index == "sorted":
        return TieredEmbedding(shape, rows, FallbackEmbedding(bare(shape)))
    return PrunedEmbedding(shape, rows + len(blocks(shape)))
