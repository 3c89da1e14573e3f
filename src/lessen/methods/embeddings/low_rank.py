"""Low-rank tables by feature mimicking: narrow rows and a decoder for each field, from frequency-weighted moments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.calibration import count_ids, principal_axes, rank_for, recalibrate_batch_norm
from lessen.methods.embeddings._shared.budget import (
    TOLERANCE,
    check_share,
    share_field,
    share_out,
    size_of,
    solve,
    table_bytes,
    targets,
)
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, Site, blocks, module_bytes, replace, require, too_small
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.low_rank import LowRankEmbedding
from lessen.task import Task


@dataclass(frozen=True)
class Axes:
    """Frequency-weighted statistics of one field: mean [dim], variances [dim] falling, axes [dim, dim], lookups."""

    mean: Tensor
    variances: Tensor
    axes: Tensor
    lookups: int


class LowRankTables(ModuleMethod):
    """Replace rows of d values by k codes; vector = codes @ decoder of the field + mean of the field.

    Source: "Unified Low-rank Compression Framework for CTR Prediction", KDD 2024 (arXiv 2405.18146), atomic feature
    mimicking: eigenvectors of the covariance of the looked-up rows, so that frequent ids decide the subspace. The
    moments come in closed form from id counts of the train split. One rank serves all fields, as in the paper; it is
    given, or the smallest that keeps the share `energy` of the variance that lookups see, or per table what `share` of
    the bytes allows. Difference: the decoder is not fused into the next layer, because an interaction layer usually
    reads the same vectors.
    """

    card = Card(
        name="emb-low-rank",
        family="embeddings",
        summary="Store k codes a row and decode them by a small matrix for each field.",
        acts_on=TABLES,
        source="KDD 2024, arXiv 2405.18146 (atomic feature mimicking)",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    later_knobs = frozenset({"share"})
    share: float | None = share_field("rank and energy")
    rank: int | None = Field(None, ge=1, le=4096, description="codes a row; none: from energy")
    energy: float = Field(
        0.95, gt=0, le=1, description="share of the looked-up variance to keep, when no rank is given"
    )
    fine_tune_epochs: int = Field(0, ge=0, le=1000, description="epochs of training after the replacement")
    min_rows: int = Field(200, ge=2, le=10**9, description="smaller tables stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Count, decompose and replace.

        Raises:
            NothingMatchedError: no table is eligible or would get smaller.
            BudgetError: no ranks take the share.
            TaskError: training is asked for and absent.
        """
        sites = self.eligible(model, TABLES, context, self._reject, (LowRankEmbedding,))
        before, ranks = table_bytes(model), self._ranks(model, sites)
        replaced = []
        for site, counts, rank in zip(sites, count_ids(model, task, sites), ranks, strict=True):
            made = self._decompose(site, counts, rank, context)
            if made is not None:
                model = replace(model, site, made)
                replaced.append(site)
        require(replaced, self, model, context)
        if self.share is not None:
            context.findings["share"] = round(check_share(table_bytes(model), before, self.share, self.card.name), 5)
        recalibrate_batch_norm(model, task, None)
        if self.fine_tune_epochs:
            retrain.fine_tune(model, task, context, epochs=self.fine_tune_epochs)
        return model

    def _ranks(self, model: nn.Module, sites: list[Site]) -> list[int | None]:
        """Return the rank of each site that the share or `rank` asks for; None: from the energy."""
        if self.share is None:
            return [self.rank] * len(sites)
        shapes, sizes = [TableShape.of(site.module) for site in sites], [module_bytes(site.module) for site in sites]

        def size(number: int, rank: int) -> int:
            return size_of(lambda: LowRankEmbedding(shapes[number], rank))

        return share_out(
            sizes,
            targets(model, sites, self.share),
            TOLERANCE * self.share * table_bytes(model),
            lambda number, target: solve(partial(size, number), 1, max(1, shapes[number].dim - 1), target),
            lambda number, rank: min(sizes[number], size(number, rank)),
        )

    def _reject(self, table: Any) -> str | None:
        padding = table.padding_idx
        if self.share is None and self.rank is not None and self.rank >= table.embedding_dim:
            return f"has {table.embedding_dim} columns, rank {self.rank} is no reduction"
        if table.embedding_dim == 1:
            return "has one column (first-order weights)"
        if padding is not None and bool(table.weight.detach()[padding].any()):
            return "its padding row is not zero"
        return too_small(table, self.min_rows)

    def _decompose(self, site: Site, counts: Tensor, rank: int | None, context: Context) -> LowRankEmbedding | None:
        shape = TableShape.of(site.module)
        weight = site.module.weight.detach().double()
        parts = [
            weighted_axes(weight[b.start : b.start + b.rows], counts[b.start : b.start + b.rows]) for b in blocks(shape)
        ]
        seen = torch.stack([part.variances * part.lookups for part in parts]).sum(dim=0)
        rank = rank or rank_for(seen, self.energy)
        made = LowRankEmbedding(shape, rank)
        before, after = module_bytes(site.module), module_bytes(made)
        if rank >= shape.dim or after >= before:
            why = f"rank {rank} of {shape.dim} takes {after} bytes instead of {before}"
            context.findings.setdefault("skipped", {})[site.path] = why
            return None
        _fill(made, weight, parts)
        kept = float(seen[:rank].sum() / seen.sum()) if float(seen.sum()) else 1.0
        context.findings.setdefault("tables", {})[site.path] = {"rank": rank, "energy": round(kept, 6)}
        return made


def weighted_axes(rows: Tensor, counts: Tensor) -> Axes:
    """Return mean, variances and axes of rows [n, dim] float64, each counted as often as it was looked up.

    Rows that were never looked up count once altogether evenly if none was.
    """
    total = int(counts.sum())
    shares = counts.double() / total if total else torch.full((len(rows),), 1.0 / len(rows), dtype=torch.float64)
    mean = shares @ rows
    centred = rows - mean
    variances, axes = principal_axes(centred.t() @ (shares.unsqueeze(1) * centred))
    return Axes(mean, variances, axes, total)


@torch.no_grad()
def _fill(made: LowRankEmbedding, weight: Tensor, parts: list[Axes]) -> None:
    for number, (block, part) in enumerate(zip(made.blocks, parts, strict=True)):
        rows = slice(block.start, block.start + block.rows)
        basis = part.axes[:, : made.rank]
        made.table.weight[rows] = ((weight[rows] - part.mean) @ basis).float()
        made.decoder[number] = basis.t().float()
        made.mean[number] = part.mean.float()
