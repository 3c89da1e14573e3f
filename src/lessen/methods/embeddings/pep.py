"""PEP: learned soft thresholds prune single values; what survives is trained again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.importance import evidence
from lessen.methods.embeddings._shared.retrained import Wanted, spread
from lessen.methods.embeddings._shared.searched import SearchedTables, SearchForm, search_forms
from lessen.methods.embeddings._shared.trained_form import TrainingForm
from lessen.methods.sites import TABLES, blocks
from lessen.stored.fields import block_of
from lessen.stored.tables.bitmap_embedding import BitmapEmbedding
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table
from lessen.task import Task
from lessen.train.hooks import Hook

Sharing = Literal["global", "dimension", "feature", "field", "field_dim", "feature_dim"]
LARGEST = 1.0 - 1e-6
"""Values from here on are ordered by size alone: a sigmoid threshold never exceeds 1."""


class SoftThresholdTable(SearchForm):
    """V^ = sign(V) relu(|V| - sigmoid(s)): values shrink by their threshold and vanish below it."""

    lift: Tensor

    def __init__(
        self, shape: TableShape, weight: Tensor, counts: Tensor, keep: int, start: float, sharing: Sharing
    ) -> None:
        super().__init__(shape)
        self.keep, self.sharing = keep, sharing
        self.blocks = blocks(shape)
        self.table = inner_table(shape.rows, shape.dim, weight.clone())
        rows = {"feature": shape.rows, "field": len(self.blocks)}.get(sharing.removesuffix("_dim"), 1)
        columns = shape.dim if sharing.endswith("dim") or sharing == "dimension" else 1
        self.thresholds = nn.Parameter(torch.full((rows, columns), torch.tensor(start).logit().item()))
        self.register_buffer("lift", lifts(counts))
        self.mask: Tensor | None = None

    def _thresholds(self, ids: Tensor) -> Tensor:
        """Return the thresholds of each id before the sigmoid, [*, dim] or [*, 1]."""
        return self._learned(ids) + self.lift[ids]

    def _learned(self, ids: Tensor) -> Tensor:
        """Return the threshold parameters of each id, [*, dim] or [*, 1]."""
        if len(self.thresholds) == 1:
            return self.thresholds[torch.zeros_like(ids)]
        if self.sharing.startswith("feature"):
            return self.thresholds[ids]
        return self.thresholds[block_of(ids, self.blocks)]

    def lookup(self, ids: Tensor) -> Tensor:
        """Return thresholded rows: [*] to float32 [*, dim]."""
        rows = self.table(ids)
        limit = torch.sigmoid(self._thresholds(ids))
        return self._without_padding(ids, rows.sign() * functional.relu(rows.abs() - limit))

    @torch.no_grad()
    def margins(self) -> Tensor:
        """Return by how much the threshold parameter of each value would have to rise to remove it, [rows, dim]."""
        size = self.table.weight.abs()
        level = size.clamp(min=1e-30, max=LARGEST).logit() + (size - LARGEST).clamp(min=0.0)
        margin = level - self._thresholds(torch.arange(self.shape.rows, device=size.device))
        if self.padding_idx is not None:
            margin[self.padding_idx] = -torch.inf
        return margin

    @torch.no_grad()
    def rise(self, part: float) -> None:
        """Raise all thresholds by `part` of what leaves `keep` values; nothing if fewer are left."""
        margin = self.margins().view(-1)
        if self.keep < len(margin):
            needed = margin.kthvalue(len(margin) - self.keep).values
            self.thresholds.add_(needed.clamp(min=0.0) * part)

    def settle(self) -> None:
        """Keep the `keep` values that are farthest above their thresholds."""
        margin = self.margins().view(-1)
        mask = torch.zeros(margin.shape, dtype=torch.bool)
        mask[margin.topk(self.keep).indices] = True
        self.mask = mask.view(self.shape.rows, self.shape.dim)
        if self.padding_idx is not None:
            self.mask[self.padding_idx] = False

    def kept(self, start: SearchForm) -> StoredEmbedding:
        """Return the start's values under the mask."""
        assert isinstance(start, SoftThresholdTable)
        assert self.mask is not None
        return MaskedTable(self.shape, start.table.weight, self.mask)

    def stored_bytes(self) -> int:
        """Return the bytes of the values that stay and of their places."""
        return size_of(lambda: BitmapEmbedding(self.shape, self.keep))

    def outcome(self) -> dict[str, Any]:
        """Return how many values and rows stay."""
        assert self.mask is not None
        return {"kept": int(self.mask.sum()), "rows": int(self.mask.any(dim=1).sum())}


def lifts(counts: Tensor) -> Tensor:
    """Return by how much the thresholds of rarely read rows are higher, float32 [rows, 1]; 0 at the mean evidence.

    Small thresholds are about exp(s), so that this divides them by the evidence; the mean is over rows that were read.
    """
    weight, read = evidence(counts), counts > 0
    mean = weight[read].sum() / read.sum() if bool(read.any()) else weight.mean()
    return -(weight / mean).log()


class MaskedTable(TrainingForm):
    """A dense table of which only the values under a fixed mask are seen and trained."""

    mask: Tensor

    def __init__(self, shape: TableShape, weight: Tensor, mask: Tensor) -> None:
        super().__init__(shape)
        self.table = inner_table(shape.rows, shape.dim, weight.detach() * mask)
        self.register_buffer("mask", mask.clone())

    def lookup(self, ids: Tensor) -> Tensor:
        """Return masked rows: [*] to float32 [*, dim]."""
        rows: Tensor = self.table(ids) * self.mask[ids]
        return rows

    def stored_bytes(self) -> int:
        """Return the bytes of the stored form."""
        return size_of(lambda: BitmapEmbedding(self.shape, int(self.mask.sum())))

    def stored(self) -> StoredEmbedding:
        """Return the values under the mask and a bit for every place."""
        return BitmapEmbedding.from_dense(self.shape, self.table.weight, self.mask)


class Rising(Hook):
    """Raises all thresholds each `every` steps, so that the last step of the search leaves as many values as wanted.

    How far they still have to rise is measured anew each time; nothing rises in the first epoch, which tells how many
    steps an epoch has.
    """

    def __init__(self, every: int, epochs: int) -> None:
        self.every, self.epochs = every, epochs
        self.steps_an_epoch, self.steps = 0, 0

    def after_step(self, model: nn.Module, step: int) -> None:
        """Count, and raise on schedule once the length of an epoch is known."""
        self.steps = step
        if self.steps_an_epoch and step % self.every == 0:
            left = self.epochs * self.steps_an_epoch - step
            for form in search_forms(model).values():
                assert isinstance(form, SoftThresholdTable)
                form.rise(min(1.0, self.every / max(left, 1)))

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Learn the length of an epoch."""
        if epoch == 1:
            self.steps_an_epoch = self.steps


class LearnedThresholdTables(SearchedTables):
    """Learn a threshold for every value (row, column or field), prune below it, and train the surviving values again.

    Source: PEP, ICLR 2021 (arXiv 2101.07577). Weight decay alone moves the thresholds in the published set-up, by one
    learning rate a step; that rise is explicit here, beside the task's gradient, and measured so that the search ends
    with the wanted number of values. Both trainings start from the same weights, those of the model (`start: given`) or
    of a fresh build (`fresh`, the paper's lottery ticket, network included). Stored as kept values and 1.5 bits for
    every place. Differences: thresholds start at 1 % of the table's deviation instead of sigmoid(-15) or sigmoid(-150),
    whose gradient underflows, and are higher the fewer train lookups a row has (see `importance`; in the published
    set-up weight decay shrinks rare rows); one target a run instead of several.
    """

    card = Card(
        name="emb-pep",
        family="embeddings",
        summary="Learn thresholds that prune single table values, then train the surviving ones again.",
        acts_on=TABLES,
        source="ICLR 2021, arXiv 2101.07577",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (BitmapEmbedding,)
    counts_ids = True
    sparsity: float = Field(0.8, gt=0, lt=1, description="share of a table's values that must go")
    thresholds: Sharing = Field("feature_dim", description="what has a threshold of its own")
    every: int = Field(10, ge=1, le=10**6, description="steps between two rises of the thresholds")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:  # noqa: ARG002
        """Return the table under thresholds, started from its weights."""
        assert wanted.counts is not None
        shape, weight = wanted.shape, wanted.table.weight.detach().float()
        values = shape.rows * shape.dim
        keep = max(1, round((1 - self.sparsity) * values))
        if wanted.target is not None:
            keep = solve(lambda count: size_of(lambda: BitmapEmbedding(shape, count)), 1, values, wanted.target)
        first = min(0.5, 0.01 * spread(wanted.table))
        return SoftThresholdTable(shape, weight, wanted.counts, keep, first, self.thresholds)

    def search_hooks(self, task: Task, context: Context) -> Sequence[Hook]:  # noqa: ARG002
        """Return the rise of the thresholds."""
        return (Rising(self.every, self.search_epochs),)

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return how many values stay."""
        assert isinstance(made, SoftThresholdTable)
        return {"kept": made.keep}
