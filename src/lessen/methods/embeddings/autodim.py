"""AutoDim: each field's width is learned as a soft choice among a few, then the chosen widths are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.bilevel import ArchitectureSteps, HeldOut
from lessen.methods.embeddings._shared.retrained import Wanted, spread
from lessen.methods.embeddings._shared.searched import SearchedTables, SearchForm, search_forms
from lessen.methods.embeddings.mixed_dimension import start_fresh, start_from_rows
from lessen.methods.sites import TABLES, blocks
from lessen.stored.fields import block_of
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.mixed_width import MixedWidthEmbedding
from lessen.task import Task
from lessen.train.hooks import Hook

UNITS = 4000
COLDEST, COOLING, BATCH = 0.01, 5e-5, 2000
"""The temperature falls from 1 to `COLDEST` by `COOLING` each step of `BATCH` examples."""


class WidthSearchTable(SearchForm):
    """One table for each candidate width; a lookup blends their normalised rows by its field's soft choice.

    ids --> [table of width w --> projection to dim --> batch norm without scale] for each w --> weighted sum
    """

    counts: Tensor

    def __init__(self, shape: TableShape, tables: Sequence[MixedWidthEmbedding], scale: float) -> None:
        super().__init__(shape)
        self.tables = nn.ModuleList(tables)
        self.candidates = [table.widths[0] for table in tables]
        self.blocks = blocks(shape)
        self.norms = nn.ModuleList(nn.BatchNorm1d(shape.dim, affine=False) for _ in tables)
        self.logits = nn.Parameter(torch.zeros(len(self.blocks), len(tables)))
        self.scale, self.temperature = scale, 1.0
        self.target: int | None = None
        self.counts = torch.zeros(0)
        self.fresh, self.seed = False, 0
        self.widths: list[int] = []

    def shares(self, noisy: bool) -> Tensor:
        """Return the weight of each candidate in each field, float32 [blocks, candidates]; rows sum to 1."""
        chances = torch.log_softmax(self.logits, dim=1)
        if noisy:
            chances = chances - torch.log(-torch.log(torch.rand_like(chances).clamp(1e-20, 1 - 1e-7)))
        return torch.softmax(chances / self.temperature, dim=1)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return blended rows: [*] to float32 [*, dim]."""
        flat = ids.reshape(-1)
        each = self.shares(noisy=self.training)[block_of(flat, self.blocks)]
        rows = torch.zeros(len(flat), self.embedding_dim, device=ids.device)
        for place, (table, norm) in enumerate(zip(self.tables, self.norms, strict=True)):
            rows = rows + each[:, place : place + 1] * norm(table.lookup(flat))  # type: ignore[operator]
        return self._without_padding(ids, (rows * self.scale).reshape(*ids.shape, self.embedding_dim))

    def decide(self) -> None:
        """Take each field's most likely width; with a target, the most likely widths that reach it."""
        if self.target is None:
            self.widths = [self.candidates[place] for place in self.logits.argmax(dim=1).tolist()]
        else:
            self.widths = likeliest(self._scores(), self._sizes(), self.target)

    def _scores(self) -> np.ndarray:
        """Return the logits at every width, between candidates on a straight line, float64 [blocks, dim]."""
        every = np.arange(1, self.embedding_dim + 1)
        return np.stack([np.interp(every, self.candidates, row) for row in self.logits.detach().double().numpy()])

    def _sizes(self) -> np.ndarray:
        """Return the bytes of each field's rows and projection at every width, int64 [blocks, dim]."""
        dim = self.embedding_dim
        every = np.arange(1, dim + 1)
        return np.stack([4 * every * (block.rows + dim * (every < dim)) for block in self.blocks])

    def _size(self, widths: Sequence[int]) -> int:
        return int(self._sizes()[np.arange(len(self.blocks)), np.array(widths) - 1].sum())

    def kept(self, start: SearchForm) -> StoredEmbedding:
        """Return a table of the chosen widths, started as that of `emb-mde`."""
        assert isinstance(start, WidthSearchTable)
        widest = start.tables[-1]
        assert isinstance(widest, MixedWidthEmbedding)
        return started(
            self.shape, self.widths, widest.dequantise(), None if self.fresh else self.counts, self.scale, self.seed
        )

    def stored_bytes(self) -> int:
        """Return the bytes aimed at; without a target, those of the second widest candidate."""
        if self.target is None:
            return self._size([self.candidates[max(0, len(self.candidates) - 2)]] * len(self.blocks))
        sizes = self._sizes()
        return self._size(likeliest(np.zeros(sizes.shape), sizes, self.target))

    def outcome(self) -> dict[str, Any]:
        """Return the widths."""
        return {"widths": list(self.widths), "bytes": self._size(self.widths)}


def started(
    shape: TableShape, widths: Sequence[int], weight: Tensor, counts: Tensor | None, scale: float, seed: int
) -> MixedWidthEmbedding:
    """Return a table of given widths: principal components of `weight` by `counts`, or random where those are None."""
    made = MixedWidthEmbedding(shape, list(widths))
    if counts is not None:
        start_from_rows(made, weight, counts)
    else:
        start_fresh(made, scale, torch.Generator().manual_seed(seed))
        made.projections.requires_grad_(True)
    return made


def likeliest(scores: np.ndarray, sizes: np.ndarray, target: int) -> list[int]:
    """Return the widths with the largest sum of scores among those whose sizes sum to the target, within 1.5 %.

    A knapsack over all fields: bytes are counted in units of 1/4000 of the target. The nearest choice is returned where
    none comes that near.

    Args:
        scores: float64 [fields, widths], of the widths 1, 2, ...; sizes: bytes, the same shape.
    """
    if target >= sizes.max(axis=1).sum():
        return [int(size.argmax()) + 1 for size in sizes]
    units, most = np.rint(sizes * (UNITS / max(target, 1))).astype(np.int64), 2 * UNITS
    best = np.full(most + 1, -np.inf)
    best[0] = 0.0
    choices = []
    for score, cost in zip(scores, units, strict=True):
        tried = np.full((len(score), most + 1), -np.inf)
        for place, (gain, unit) in enumerate(zip(score, cost, strict=True)):
            if unit <= most:
                tried[place, unit:] = best[: most + 1 - unit] + gain
        choices.append(tried.argmax(axis=0))
        best = tried.max(axis=0)
    away = np.abs(np.arange(most + 1) - UNITS)
    # a tie goes to the sum nearest to the target; without a sum within reach, nearness is all that counts
    worth = np.where(away <= 0.015 * UNITS, best - 1e-12 * away, -np.inf)
    if not np.isfinite(worth).any():
        worth = np.where(np.isfinite(best), -away.astype(np.float64), -np.inf)
    if not np.isfinite(worth).any():
        return [1] * len(scores)
    state, widths = int(worth.argmax()), []
    for choice, cost in zip(reversed(choices), units[::-1], strict=True):
        widths.append(int(choice[state]) + 1)
        state -= int(cost[choice[state]])
    return widths[::-1]


class WidthSteps(ArchitectureSteps):
    """Moves the choice of widths by plain gradient descent and cools it."""

    def __init__(self, held_out: HeldOut, rate: float) -> None:
        super().__init__(held_out)
        self.rate, self.examples = rate, 0

    def architecture(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the logits of all tables."""
        return [form.logits for form in search_forms(model).values() if isinstance(form, WidthSearchTable)]

    def move(self, model: nn.Module, gradients: list[Tensor], batch: Any) -> None:
        """Descend, and lower the temperature by the examples seen."""
        self.examples += len(self.held_out.task.target(batch))
        for logits, gradient in zip(self.architecture(model), gradients, strict=True):
            logits.sub_(gradient, alpha=self.rate)
        for form in search_forms(model).values():
            if isinstance(form, WidthSearchTable):
                form.temperature = temperature(self.examples)


def temperature(examples: int) -> float:
    """Return the temperature after so many examples."""
    return max(COLDEST, 1.0 - COOLING * examples / BATCH)


class LearnedWidthTables(SearchedTables):
    """Search each field's width by a Gumbel softmax over candidates, then train tables of the chosen widths.

    Source: AutoDim, WWW 2021 (arXiv 2006.14827), first-order: after each step of the weights the choice moves by the
    loss on train batches that the weights never see during the search. Candidates are 2, 4, 8, ... and the full width.
    The likeliest widths that hit a given `share` are found by a knapsack over all fields, of any width in between. The
    tables trained last start as those of `emb-mde`: principal components of the rows that the search started from, or
    at random for `start: fresh`. Differences: blended rows are scaled to the table's own deviation, so that a trained
    network can be searched; projections have no bias, which batch norm cancels and bags would repeat; the second-order
    term is left out.
    """

    card = Card(
        name="emb-autodim",
        family="embeddings",
        summary="Learn each field's width as a soft choice among candidates, then train tables of those widths.",
        acts_on=TABLES,
        source="WWW 2021, arXiv 2006.14827",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    finds_size = True
    makes = (MixedWidthEmbedding,)
    counts_ids = True
    architecture_rate: float = Field(1e-3, gt=0, le=1e3, description="learning rate of the choice of widths")
    held_out: int = Field(4, ge=2, le=1000, description="every n-th train batch is the choice's, not the weights'")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:
        """Return the tables of all candidate widths, each started from the rows."""
        assert wanted.counts is not None
        shape, weight, count = wanted.shape, wanted.table.weight.detach().float(), len(blocks(wanted.shape))
        scale, fresh = spread(wanted.table), self.start == "fresh"
        widths = [*(2**power for power in range(1, 12) if 2**power < shape.dim), shape.dim]
        counts = None if fresh else wanted.counts
        tables = [started(shape, [w] * count, weight, counts, scale, context.seed) for w in widths]
        form = WidthSearchTable(shape, tables, scale)
        form.target, form.counts, form.fresh, form.seed = wanted.target, wanted.counts, fresh, context.seed
        return form

    def search_task(self, task: Task, context: Context) -> Task:
        """Return the task without the batches that the choice learns on."""
        return HeldOut(task, self.held_out, context.seed).training()

    def search_hooks(self, task: Task, context: Context) -> Sequence[Hook]:
        """Return the steps of the choice."""
        return (WidthSteps(HeldOut(task, self.held_out, context.seed), self.architecture_rate),)

    def decide(self, model: nn.Module, forms: Sequence[SearchForm], task: Task, context: Context) -> None:  # noqa: ARG002
        """Choose the widths of every table."""
        for form in forms:
            assert isinstance(form, WidthSearchTable)
            form.decide()

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:  # noqa: ARG002
        """Record nothing before the search."""
        return {}
