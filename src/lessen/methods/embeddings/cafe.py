"""CAFE: a sketch finds the ids that matter while training runs; they get rows of their own, all others share."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.hot_sketch import SLOTS, HotSketch
from lessen.methods.embeddings._shared.retrained import Wanted, spread
from lessen.methods.embeddings._shared.trained_form import TrainedQuantizer, TrainingForm
from lessen.methods.sites import TABLES, blocks
from lessen.stored.fields import block_of
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.tables.hashed_embedding import HashedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare
from lessen.train.hooks import Hook

SLOT_BYTES = 12
"""What a slot of the sketch takes in the paper's layout: id, score and row, 4 bytes each."""
THRESHOLDS = ((0.2, 10.0), (0.1, 20.0), (0.05, 30.0), (0.02, 50.0), (0.01, 100.0), (0.005, 200.0))
"""Smallest score of a row of its own for each size, the authors' settings; 500 below."""


class HotColdTable(TrainingForm):
    """Rows of hot ids, hashed rows of the others, and the sketch that decides; only large fields can be hot."""

    def __init__(self, shape: TableShape, hot: int, buckets: list[int], threshold: float, decay: float) -> None:
        super().__init__(shape)
        self.cold = HashedEmbedding(bare(shape), buckets, 1, False)
        self.hot = inner_table(hot, shape.dim)
        self.sketch = HotSketch(hot, hot)
        self.threshold, self.rate = threshold, decay
        self.inserted = 0.0
        self._seen: list[tuple[Tensor, Tensor]] = []

    def lookup(self, ids: Tensor) -> Tensor:
        """Return hot or shared rows: [*] to float32 [*, dim]; while training, gradients are noted."""
        flat = ids.reshape(-1).long()
        row = self.sketch.row_of(flat)
        owned = row >= 0
        # each table is asked for its own ids only: a lazy optimiser would move rows of zero gradient
        rows = torch.empty(len(flat), self.embedding_dim)
        rows = rows.index_put((owned,), self.hot(row[owned])).index_put((~owned,), self.cold(flat[~owned]))
        if self.training and rows.requires_grad:
            rows.register_hook(lambda gradient: self._seen.append((flat, gradient.detach())))  # type: ignore[no-untyped-call]
        return rows.reshape(*ids.shape, self.embedding_dim)

    @torch.no_grad()
    def update(self) -> None:
        """Insert the importance of the last step's ids, decay when due, and promote."""
        for flat, gradient in self._seen:
            ids, scores = self.importance(flat, gradient)
            self.sketch.insert(ids, scores)
            self.inserted += float(scores.sum())
        self._seen.clear()
        if self.inserted > 10 * len(self.sketch.ids) * self.threshold:
            self.sketch.decay(self.rate, self.threshold)
            self.inserted = 0.0
        ids, rows = self.sketch.promote(self.threshold)
        self.hot.weight[rows] = self.cold(ids)

    def importance(self, flat: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return distinct ids of large fields and their scores, float64: gradient norms over the field's mean norm."""
        field, fields = block_of(flat, self.cold.blocks), len(self.cold.blocks)
        norms = gradient.norm(dim=1).double()
        count = torch.bincount(field, minlength=fields)
        mean = torch.bincount(field, norms, minlength=fields) / count.clamp(min=1)
        large = torch.tensor(
            [size < block.rows for size, block in zip(self.cold.buckets, self.cold.blocks, strict=True)]
        )[field]
        ids, place = torch.unique(flat[large], return_inverse=True)
        values = (norms / mean.clamp(min=1e-30)[field])[large]
        return ids, torch.zeros(len(ids), dtype=torch.float64).index_add_(0, place, values)

    def stored_bytes(self) -> int:
        """Return the bytes of the two tiers."""
        return size_of(lambda: _tiers(self.shape, len(self.hot.weight), self.cold.buckets))

    def stored(self) -> StoredEmbedding:
        """Return two tiers; rows that no id owns go to the followed ids of the highest score, unchanged in value."""
        ids = self._hot_ids()
        made = _tiers(self.shape, len(ids), self.cold.buckets)
        made.cold.load_state_dict(self.cold.state_dict())
        made.fill_hot(ids, self.lookup(ids).detach())
        return made

    def _hot_ids(self) -> Tensor:
        """Return as many ids as there are hot rows, rising: owners first, then by score, then any others."""
        ids, rows = self.sketch.ids.view(-1), self.sketch.rows.view(-1)
        rank = torch.where(rows >= 0, torch.inf, self.sketch.scores.view(-1))
        order = torch.argsort(rank, descending=True, stable=True)
        known = ids[order][ids[order] >= 0][: len(self.hot.weight)]
        others = torch.ones(self.num_embeddings, dtype=torch.bool)
        others[known] = False
        missing = others.nonzero()[: len(self.hot.weight) - len(known), 0]
        return torch.cat([known, missing]).sort().values


def _tiers(shape: TableShape, hot: int, buckets: list[int]) -> TieredEmbedding:
    return TieredEmbedding(shape, hot, HashedEmbedding(bare(shape), list(buckets), 1, False))


class Sketching(Hook):
    """Updates the sketches between the gradients and the optimiser's step."""

    parallel = False  # importance is of the gradients of the rows that one process saw

    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Update every table."""
        for module in model.modules():
            if isinstance(module, HotColdTable):
                module.update()


class CafeTables(TrainedQuantizer):
    """Follow the gradient norms of ids in a sketch; ids above a threshold move from shared rows to rows of their own.

    Source: CAFE, SIGMOD 2024 (arXiv 2312.03256): importance is the gradient norm relative to its field, promotion
    copies the shared row, scores decay by 0.99 and demoted ids fall back to the shared row. What is kept after
    training is the list of hot ids with their rows and the shared rows; the sketch itself, 48 bytes a hot row as the
    authors count it, is needed for training only and is reported as `sketch_bytes`. Differences: a batch is one update
    of the sketch; all hot rows are usable (the authors' row 0 is not); the optimiser's moments of a row that changes
    its owner are kept; the second hash level for ids of middling score is left out.
    """

    card = Card(
        name="emb-cafe",
        family="embeddings",
        summary="Find important ids by a sketch during training; they get own rows, others share hashed rows.",
        acts_on=TABLES,
        source="SIGMOD 2024, arXiv 2312.03256",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (TieredEmbedding, HashedEmbedding)
    start: Literal["given", "fresh"] = Field(
        "fresh", description="train the rest of the model from a fresh build, or on from the given weights"
    )
    ratio: float = Field(0.1, gt=0, lt=1, description="rows of both kinds as a share of each large field's rows")
    hash_part: float = Field(0.5, gt=0, lt=1, description="part of them that is shared (beta)")
    threshold: float | None = Field(
        None, gt=0, le=1e9, description="score of a row of its own; none: the authors' for the size"
    )
    decay: float = Field(
        0.99, gt=0, le=1, description="factor on all scores, each time ten thresholds a bucket came in"
    )

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:
        """Return an untrained table without any hot id."""
        shape, ratio = wanted.shape, self.ratio
        if wanted.target is not None:
            fine = 2**22
            ratio = solve(lambda part: self._size(shape, part / fine), 1, fine - 1, wanted.target) / fine
        threshold = self.threshold or next((score for size, score in THRESHOLDS if ratio >= size), 500.0)
        made = HotColdTable(shape, self._hot(shape, ratio), self._buckets(shape, ratio), threshold, self.decay)
        made.cold.reset(spread(wanted.table), context.generator)
        return made

    def _size(self, shape: TableShape, ratio: float) -> int:
        return size_of(lambda: _tiers(shape, self._hot(shape, ratio), self._buckets(shape, ratio)))

    def _large(self, shape: TableShape) -> list[bool]:
        return [block.name != "" and block.rows >= self.min_rows for block in blocks(shape)]

    def _hot(self, shape: TableShape, ratio: float) -> int:
        ids = sum(block.rows for block, large in zip(blocks(shape), self._large(shape), strict=True) if large)
        return max(1, math.floor(ids * ratio * (1 - self.hash_part)))

    def _buckets(self, shape: TableShape, ratio: float) -> list[int]:
        pairs = zip(blocks(shape), self._large(shape), strict=True)
        return [math.ceil(ratio * self.hash_part * block.rows) if large else block.rows for block, large in pairs]

    def training_hooks(self, context: Context) -> tuple[Hook, ...]:  # noqa: ARG002
        """Return the hook that updates the sketches."""
        return (Sketching(),)

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return hot rows, shared rows, the threshold and what the sketch took while training."""
        assert isinstance(made, HotColdTable)
        hot = len(made.hot.weight)
        return {
            "hot": hot,
            "shared": sum(made.cold.buckets),
            "threshold": made.threshold,
            "sketch_bytes": hot * SLOTS * SLOT_BYTES,
        }
