"""Frequency-aware tables: frequent ids keep rows of their own, all others share a small hashed table."""

from __future__ import annotations

import math

import torch
from pydantic import Field

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.retrained import RetrainedTables, Wanted, spread
from lessen.methods.sites import TABLES, blocks
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.hashed_embedding import HashedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare


class AdaptTables(RetrainedTables):
    """Give the `hot` most frequent ids of each large field rows of their own and hash the rest; trained anew.

    Source: AdaptEmb of DeepRec, as in the VLDB 2024 study (arXiv 2311.15578): static, by counts of the train split.
    Differences: the hot set is a sorted list (4 bytes a hot id, counted) instead of an uncounted map of all ids; hot
    sets are exact shares with ties broken by id. `hashes` 2 is the frequency-split double hash
    (arXiv 2007.14523). `hot_part` of the bytes goes to hot rows where `share` is given.
    """

    card = Card(
        name="emb-adapt",
        family="embeddings",
        summary="Keep rows for frequent ids, hash all others into a small table, and retrain.",
        acts_on=TABLES,
        source="DeepRec adaptive embedding; arXiv 2311.15578",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (TieredEmbedding, HashedEmbedding)
    counts_ids = True
    hot: float = Field(0.1, gt=0, lt=1, description="share of each large field's ids with rows of their own")
    rest: float = Field(0.05, gt=0, lt=1, description="shared rows as a share of each large field's rows")
    hashes: int = Field(1, ge=1, le=4, description="shared rows averaged for each other id; 2: double hash")
    hot_part: float = Field(0.7, gt=0, lt=1, description="with a share: part of the bytes that hot rows get")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:
        """Return a two-tier table with fresh rows of the same deviation."""
        shape, hot, rest = wanted.shape, self.hot, self.rest
        if wanted.target is not None:
            hot, rest = self._solved(shape, wanted.target)
        assert wanted.counts is not None
        ids = self._hot_ids(shape, wanted.counts, hot)
        std = spread(wanted.table)
        cold = HashedEmbedding(bare(shape), self._buckets(shape, rest), self.hashes, False)
        cold.reset(std, context.generator)
        made = TieredEmbedding(shape, len(ids), cold)
        made.fill_hot(ids, torch.randn(len(ids), shape.dim, generator=context.generator) * std)
        return made

    def _large(self, shape: TableShape) -> list[bool]:
        return [block.name != "" and block.rows >= self.min_rows for block in blocks(shape)]

    def _counts(self, shape: TableShape, hot: float) -> list[int]:
        """Return the hot ids of each block."""
        pairs = zip(blocks(shape), self._large(shape), strict=True)
        return [max(1, math.floor(hot * block.rows)) if large else 0 for block, large in pairs]

    def _hot_ids(self, shape: TableShape, counts: torch.Tensor, hot: float) -> torch.Tensor:
        chosen = []
        for block, most in zip(blocks(shape), self._counts(shape, hot), strict=True):
            own = counts[block.start : block.start + block.rows]
            chosen.append(block.start + torch.argsort(own, descending=True, stable=True)[:most])
        return torch.cat(chosen).sort().values

    def _buckets(self, shape: TableShape, rest: float) -> list[int]:
        pairs = zip(blocks(shape), self._large(shape), strict=True)
        return [max(1, math.ceil(rest * block.rows)) if large else block.rows for block, large in pairs]

    def _solved(self, shape: TableShape, target: int) -> tuple[float, float]:
        """Return hot and rest: the hashed rows get their part first, hot rows what is left."""
        fine = 2**20

        def cold(parts: int) -> int:
            return size_of(lambda: HashedEmbedding(bare(shape), self._buckets(shape, parts / fine), self.hashes, False))

        rest = solve(cold, 1, fine, int((1 - self.hot_part) * target))

        def both(parts: int) -> int:
            return cold(rest) + (4 * shape.dim + 4) * sum(self._counts(shape, parts / fine))

        return solve(both, 1, fine, target) / fine, rest / fine
