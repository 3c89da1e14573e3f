"""DeepLight: the smallest values of all tables are zeroed again and again while training goes on."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.importance import evidence
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings._shared.trained_form import TrainedQuantizer, TrainingForm
from lessen.methods.sites import TABLES
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.tables.sparse_embedding import SparseEmbedding
from lessen.train.hooks import Hook


class ThinningTable(TrainingForm):
    """A dense table that is thinned out during training; `kept` values remain at the end."""

    evidence: Tensor

    def __init__(self, shape: TableShape, weight: Tensor, counts: Tensor, kept: int) -> None:
        super().__init__(shape)
        self.table = inner_table(shape.rows, shape.dim, weight.clone())
        self.register_buffer("evidence", evidence(counts))
        self.kept = kept
        self._last: tuple[int, Tensor] | None = None

    def lookup(self, ids: Tensor) -> Tensor:
        """Return rows as they are, and in eval mode as they would be stored: [*] to float32 [*, dim]."""
        rows: Tensor = self.table(ids)
        if self.training:
            self._last = None  # fused optimisers do not count up the version of what they move
            return rows
        return rows * self._staying()[ids]

    def _staying(self) -> Tensor:
        """Return which values a thinning to the end would leave, bool [rows, dim]; made anew when they changed."""
        version = self.table.weight._version
        if self._last is None or self._last[0] != version:
            staying = torch.ones(self.table.weight.numel(), dtype=torch.bool)
            staying[self._smallest(staying.numel() - self.kept)] = False
            self._last = version, staying.view(self.table.weight.shape)
        return self._last[1]

    @torch.no_grad()
    def _smallest(self, count: int) -> Tensor:
        """Return the places of the values of least size and evidence, int64 [count]."""
        return (self.table.weight.abs() * self.evidence).view(-1).topk(count, largest=False).indices

    @torch.no_grad()
    def thin(self, progress: float) -> None:
        """Zero the values of least size and evidence so that the share `progress` of what must go is gone."""
        values = self.table.weight.view(-1)
        drop = round((len(values) - self.kept) * progress)
        values[self._smallest(drop)] = 0.0

    def stored_bytes(self) -> int:
        """Return the bytes of the sparse form."""
        return size_of(lambda: SparseEmbedding(self.shape, self.kept))

    def stored(self) -> StoredEmbedding:
        """Thin to the end and return the sparse form."""
        self.thin(1.0)
        return SparseEmbedding.from_dense(self.shape, self.table.weight)


class Thinning(Hook):
    """Thins every table each `every` steps and at the end of each epoch; the share gone follows 1 - 0.99^(k / omega).

    `omega` is set so that the schedule has arrived (to 0.1 %) after `arrive` epochs, whose steps are counted in the
    first one. Scores are always of the model as it would be stored: a dense epoch cannot become the best one.
    """

    def __init__(self, every: int, arrive: int) -> None:
        self.every, self.arrive = every, arrive
        self.steps_an_epoch, self.steps = 0, 0

    def after_step(self, model: nn.Module, step: int) -> None:
        """Count, and thin on schedule once the length of an epoch is known."""
        self.steps = step
        if self.steps_an_epoch and step % self.every == 0:
            self._thin(model)

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Learn the length of an epoch."""
        if epoch == 1:
            self.steps_an_epoch = self.steps

    def _thin(self, model: nn.Module) -> None:
        done = (self.steps - self.steps_an_epoch) / (self.arrive * self.steps_an_epoch)
        progress = 1.0 if done >= 1.0 else 1.0 - 0.001**done
        for module in model.modules():
            if isinstance(module, ThinningTable):
                module.thin(progress)


class DeepLightTables(TrainedQuantizer):
    """Prune the smallest values of each table gradually while training; store what is left in compressed rows.

    Source: DeepLight, WSDM 2021 (arXiv 2002.06987). The share gone follows S (1 - 0.99^(k / Omega)); Omega is derived
    from `epochs_to_target`, because the published constant never arrives on short epochs. No mask is kept: a value may
    grow back until the next thinning. Differences: sizes are weighed by the row's train lookups (see `importance`); one
    threshold a table instead of one over all tables, and the network itself is left to other methods. The method is
    weak for its bytes where all rows are trained (MovieLens): a kept value costs five.
    """

    card = Card(
        name="emb-deeplight",
        family="embeddings",
        summary="Zero the smallest table values step by step during training and store the rest sparsely.",
        acts_on=TABLES,
        source="WSDM 2021, arXiv 2002.06987",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (SparseEmbedding,)
    counts_ids = True
    sparsity: float = Field(0.8, gt=0, lt=1, description="share of a table's values that must go")
    every: int = Field(10, ge=1, le=10**6, description="steps between thinnings")
    epochs_to_target: int = Field(2, ge=1, le=1000, description="epochs after the first in which the target is reached")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:  # noqa: ARG002
        """Return the table to thin, started from its weights."""
        assert wanted.counts is not None
        shape = wanted.shape
        values = shape.rows * shape.dim
        kept = round((1 - self.sparsity) * values)
        if wanted.target is not None:
            kept = solve(lambda count: size_of(lambda: SparseEmbedding(shape, count)), 0, values, wanted.target)
        return ThinningTable(shape, wanted.table.weight.detach().float(), wanted.counts, kept)

    def training_hooks(self, context: Context) -> tuple[Hook, ...]:  # noqa: ARG002
        """Return the thinning schedule."""
        return (Thinning(self.every, self.epochs_to_target),)

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return how many values stay."""
        assert isinstance(made, ThinningTable)
        return {"kept": made.kept}
