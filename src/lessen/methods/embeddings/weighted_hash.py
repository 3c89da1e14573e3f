"""Hash embeddings: each id reads several shared rows and weighs them by numbers of its own."""

from __future__ import annotations

import math

from pydantic import Field

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.retrained import RetrainedTables, Wanted, small_and_large, spread
from lessen.methods.embeddings.hash import RESOLUTION
from lessen.methods.sites import TABLES, blocks
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.weighted_hash import WeightedHashEmbedding


class WeightedHashTables(RetrainedTables):
    """A vector is sum_j p_j(id) * row_{h_j(id)}; the model is trained anew.

    Source: Hash Embeddings, NeurIPS 2017 (arXiv 1709.03933). Weights start uniform in [-1, 1]. They are shared by a
    hash of their own, so that rows and weights take equal bytes, as the sizes of arXiv 2210.05974's code do; a field
    whose ids are fewer than the weights that fit gets one set for each id. Differences: each field has rows of its
    own, and the weights are not appended to the vector.
    """

    card = Card(
        name="emb-weighted-hash",
        family="embeddings",
        summary="Mix a few shared rows by weights that each id learns, and retrain.",
        acts_on=TABLES,
        source="NeurIPS 2017, arXiv 1709.03933",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (WeightedHashEmbedding,)
    ratio: float = Field(0.1, gt=0, lt=1, description="shared rows as a share of each large field's rows")
    hashes: int = Field(2, ge=1, le=8, description="rows that each id mixes")

    def replacement(self, wanted: Wanted, context: Context) -> WeightedHashEmbedding:
        """Return a table with fresh rows and weights."""
        shape, ratio = wanted.shape, self.ratio
        if wanted.target is not None:
            ratio = (
                solve(lambda part: size_of(lambda: self._empty(shape, part / RESOLUTION)), 1, RESOLUTION, wanted.target)
                / RESOLUTION
            )
        made = self._empty(shape, ratio)
        made.reset(spread(wanted.table), context.generator)
        return made

    def _empty(self, shape: TableShape, ratio: float) -> WeightedHashEmbedding:
        small, _ = small_and_large(shape, self.min_rows)
        large = [block.rows for number, block in enumerate(blocks(shape)) if number not in small]
        rows = [math.ceil(ratio * size) for size in large]
        slots = [min(size, math.ceil(ratio * size * shape.dim / self.hashes)) for size in large]
        return WeightedHashEmbedding(shape, small, rows, slots, self.hashes)
