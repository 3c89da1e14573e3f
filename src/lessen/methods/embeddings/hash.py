"""Hashing trick and double hashing: the ids of a large field share fewer rows."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.retrained import RetrainedTables, Wanted, spread
from lessen.methods.sites import TABLES, blocks
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.hashed_embedding import HashedEmbedding

RESOLUTION = 2**24
"""Steps in which a ratio is solved for."""


class HashTables(RetrainedTables):
    """Each field of at least `min_rows` ids gets ceil(ratio * rows) shared rows; the model is trained anew.

    Sources: hashing trick, Weinberger et al. 2009 (arXiv 0902.2206); Bloom embeddings with several hashes into one
    table, Serra and Karatzoglou 2017 (arXiv 1706.03993). Differences: every field hashes into rows of its own with
    its own constants (multiplexing all fields into one space changes the result); k rows are averaged, not summed,
    so that exact fields need no special case, and start with the deviation that keeps the output's; the weighted
    and the frequency-split variants are separate methods.
    """

    card = Card(
        name="emb-hash",
        family="embeddings",
        summary="Hash the ids of large fields into fewer rows (one hash, or the mean of several) and retrain.",
        acts_on=TABLES,
        source="Weinberger et al. 2009, arXiv 0902.2206; Serra and Karatzoglou 2017, arXiv 1706.03993",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (HashedEmbedding,)
    ratio: float = Field(0.5, gt=0, lt=1, description="rows kept as a share of each large field's rows")
    hashes: int = Field(1, ge=1, le=4, description="rows averaged for each id: 1 hashing trick, 2 double hash")
    family: Literal["modulo", "universal"] = Field(
        "modulo", description="first hash: id mod rows (balanced for dense ids) or random (for raw ids)"
    )
    signed: bool = Field(False, description="multiply each row read by a hashed sign")

    def replacement(self, wanted: Wanted, context: Context) -> HashedEmbedding:
        """Return a hashed table with fresh rows of the same deviation."""
        shape, target = wanted.shape, wanted.target

        def build(parts: int) -> HashedEmbedding:
            return HashedEmbedding(shape, self._buckets(shape, parts / RESOLUTION), self.hashes, self.signed)

        ratio = self.ratio
        if target is not None:
            ratio = solve(lambda parts: size_of(lambda: build(parts)), 1, RESOLUTION, target) / RESOLUTION
        made = HashedEmbedding(shape, self._buckets(shape, ratio), self.hashes, self.signed)
        made.reset(spread(wanted.table), context.generator, modulo=self.family == "modulo")
        return made

    def _buckets(self, shape: TableShape, ratio: float) -> list[int]:
        return [
            block.rows if block.name == "" or block.rows < self.min_rows else math.ceil(ratio * block.rows)
            for block in blocks(shape)
        ]
