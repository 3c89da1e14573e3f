"""TT-Rec: large fields as a tensor train, hundreds of times smaller and much slower to look up."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card, Context
from lessen.methods.embeddings.budget import size_of, solve
from lessen.methods.embeddings.retrained import RetrainedTables, Wanted, small_and_large, spread
from lessen.methods.sites import TABLES
from lessen.stored.tensor_train import TensorTrainEmbedding


class TensorTrainTables(RetrainedTables):
    """Compute the rows of large fields from three cores of rank `rank`; the model is trained anew.

    Source: TT-Rec, MLSys 2021 (arXiv 2101.11714). All large fields of a table form one train over their rows, ids in
    mixed radix, most significant digit first. Cores start from the tails of a normal and are then scaled so that rows
    have the deviation of the table replaced, measured rather than by formula. Differences: no cache of frequent rows
    (it caps the real ratio; `emb-pq-post` and `emb-adapt` keep hot rows instead), widths without three equal factors
    are padded. Use it where bytes decide and lookups do not: each costs microseconds on a CPU.
    """

    card = Card(
        name="emb-tt",
        family="embeddings",
        summary="Compute rows from three small tensor-train cores, and retrain.",
        acts_on=TABLES,
        source="MLSys 2021, arXiv 2101.11714",
        needs=frozenset({"labels", "gradients", "training"}),
        frees=frozenset({"bytes"}),
        tags=frozenset({"trains", "tables"}),
    )
    makes = (TensorTrainEmbedding,)
    rank: int = Field(8, ge=1, le=256, description="rank between neighbouring cores")

    def replacement(self, wanted: Wanted, context: Context) -> TensorTrainEmbedding:
        """Return a tensor-train table whose rows start with the deviation of `table`."""
        shape, target = wanted.shape, wanted.target
        exact, _ = small_and_large(shape, self.min_rows)

        def size(rank: int) -> int:
            return size_of(lambda: TensorTrainEmbedding(shape, exact, rank))

        made = TensorTrainEmbedding(shape, exact, self.rank if target is None else solve(size, 1, 256, target))
        made.reset(spread(wanted.table), context.generator)
        return made
