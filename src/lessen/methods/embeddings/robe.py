"""ROBE: all large fields cut their vectors from one flat array at hashed offsets."""

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
from lessen.stored.tables.block_hashed import BlockHashedEmbedding


class RobeTables(RetrainedTables):
    """Replace rows by blocks of `block` contiguous values at hashed places of one array; trained anew.

    Source: ROBE, MLSys 2022 (arXiv 2108.02191). A block is by default a whole row: one contiguous read, the only
    setting that is fast without a kernel of its own. Differences: the modulus is the array size minus the block + 1
    (blocks never wrap, as in the authors' code), constants come from the seed instead of a fixed one, the optional sign
    hash and blocks longer than a row are left out, and fields below `min_rows` keep exact rows.
    """

    card = Card(
        name="emb-robe",
        family="embeddings",
        summary="Cut the vectors of all large fields from one flat array at hashed offsets, and retrain.",
        acts_on=TABLES,
        source="MLSys 2022, arXiv 2108.02191",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (BlockHashedEmbedding,)
    ratio: float = Field(0.25, gt=0, lt=1, description="size of the array as a share of the large fields' values")
    block: int | None = Field(None, ge=1, le=4096, description="contiguous values; none: a whole row")

    def replacement(self, wanted: Wanted, context: Context) -> BlockHashedEmbedding:
        """Return a table whose large fields share one array."""
        shape, target = wanted.shape, wanted.target
        exact, large = small_and_large(shape, self.min_rows)
        block = largest_divisor(shape.dim, self.block or shape.dim)

        def build(size: int) -> BlockHashedEmbedding:
            return BlockHashedEmbedding(shape, exact, size, block)

        if target is None:
            size = max(block, round(self.ratio * large * shape.dim))
        else:
            size = solve(lambda values: size_of(lambda: build(values)), block, large * shape.dim, target)
        made = build(size)
        made.reset(spread(wanted.table), context.generator)
        return made
