"""Unified embedding: all large fields share one hashed memory, and one number sizes it."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.retrained import (
    RetrainedTables,
    Wanted,
    largest_divisor,
    small_and_large,
    spread,
)
from lessen.methods.sites import TABLES
from lessen.stored.tables.unified_embedding import UnifiedEmbedding


class UnifiedTables(RetrainedTables):
    """Every id of a field of at least `min_rows` ids reads `chunks` narrow rows of one memory; trained anew.

    Source: Unified Embedding, NeurIPS 2023 (arXiv 2305.12102). Fields of one table share its memory; every field and
    chunk has its own salt, without which small ids of all fields would meet in the same rows. Differences: fields
    below `min_rows` keep exact rows (set it to 1 for the paper's pure form); chunks divide the width that the model
    expects, where the paper lets the width of a field grow with its chunks; separate tables of a model keep separate
    memories, because one memory under several modules would be held twice once loaded.
    """

    card = Card(
        name="emb-unified",
        family="embeddings",
        summary="Let all large fields share one hashed memory under salts of their own, and retrain.",
        acts_on=TABLES,
        source="NeurIPS 2023, arXiv 2305.12102",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (UnifiedEmbedding,)
    ratio: float = Field(0.25, gt=0, lt=1, description="values in the shared memory, as a share of the fields' values")
    chunks: int = Field(1, ge=1, le=16, description="narrow rows that each id reads; a divisor of the width is used")

    def replacement(self, wanted: Wanted, context: Context) -> UnifiedEmbedding:
        """Return a table whose large fields share one memory."""
        shape, target = wanted.shape, wanted.target
        exact, large = small_and_large(shape, self.min_rows)
        chunks = largest_divisor(shape.dim, self.chunks)
        values = large * chunks

        def build(rows: int) -> UnifiedEmbedding:
            return UnifiedEmbedding(shape, exact, rows, chunks)

        if target is None:
            rows = max(1, round(self.ratio * values))
        else:
            rows = solve(lambda size: size_of(lambda: build(size)), 1, values, target)
        made = build(rows)
        made.reset(spread(wanted.table), context.generator)
        return made
