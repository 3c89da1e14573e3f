"""Deep hash embedding: a small network computes vectors from hashes of the id; no rows are stored."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.retrained import RetrainedTables, Wanted, small_and_large, spread
from lessen.methods.sites import TABLES
from lessen.stored.tables.deep_hash import DeepHashEmbedding
from lessen.stored.tables.embedding import StoredEmbedding


class DeepHashTables(RetrainedTables):
    """Feed `hashes` hashes of each id to a network of `layers` hidden layers with batch norm and mish; trained anew.

    Source: DHE, KDD 2021 (arXiv 2010.10784), uniform encoding. Differences: one network for all large fields of a table
    (hashes differ by field) instead of one a field, one prime for all hashes, and as many hashes as a layer has units
    instead of 1024, with which the first layer alone is larger than most tables. (Few hashes and wide layers, at equal
    bytes, lose more: what hashes do not tell apart no layer can.) It is here for completeness: on CPUs a lookup is
    thousands of times slower than a gather, and narrow rows were better for their bytes wherever one number an id fits.
    """

    card = Card(
        name="emb-dhe",
        family="embeddings",
        summary="Compute vectors from hashes of the id by a small network instead of storing rows.",
        acts_on=TABLES,
        source="KDD 2021, arXiv 2010.10784",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (DeepHashEmbedding,)
    hashes: int | None = Field(
        None, ge=1, le=4096, description="hashes of an id, the inputs of the network; none: as many as `width`"
    )
    width: int = Field(32, ge=1, le=4096, description="units of a hidden layer; solved for with a share")
    layers: int = Field(2, ge=1, le=16, description="hidden layers")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:
        """Return a table that computes its large fields."""
        shape = wanted.shape
        exact, _ = small_and_large(shape, self.min_rows)

        def size(width: int) -> int:
            return size_of(lambda: DeepHashEmbedding(shape, exact, self.hashes or width, width, self.layers))

        width = self.width if wanted.target is None else solve(size, 1, 4096, wanted.target)
        made = DeepHashEmbedding(shape, exact, self.hashes or width, width, self.layers)
        made.reset(spread(wanted.table), context.generator)
        return made
