"""OptEmbed: learned thresholds drop rows, evolution over a supernet picks each field's width."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of
from lessen.methods.embeddings._shared.importance import evidence
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings._shared.searched import SearchedTables, SearchForm, search_forms
from lessen.methods.embeddings._shared.width_evolution import Evolution, Widths
from lessen.methods.embeddings.pep import MaskedTable
from lessen.methods.sites import TABLES, blocks
from lessen.stored.fields import block_of
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.tables.narrow_rows import NarrowRowsEmbedding
from lessen.task import Task
from lessen.train.hooks import Hook


class LongTailedStep(torch.autograd.Function):
    """1 where x > 0, else 0; its slope is taken as 2 - 4|x| up to 0.4, 0.4 up to 1, and 0 beyond."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        """Return the step of x."""
        context.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Return the gradient times the slope."""
        (x,) = context.saved_tensors
        size = x.abs()
        slope = torch.where(size <= 0.4, 2.0 - 4.0 * size, torch.where(size <= 1.0, 0.4, 0.0))
        return gradient * slope


class SupernetTable(SearchForm):
    """Rows count if their norm exceeds their field's threshold; in training each lookup gets a random width.

    `choose` fixes widths and rows after training, and lookups see those only.
    """

    def __init__(
        self, shape: TableShape, weight: Tensor, target: int | None, alpha: float, counts: Tensor | None = None
    ) -> None:
        super().__init__(shape)
        self.target, self.alpha = target, alpha
        self.known = torch.ones(shape.rows, 1) if counts is None else evidence(counts)
        self.blocks = blocks(shape)
        self.table = inner_table(shape.rows, shape.dim, weight.clone())
        self.thresholds = nn.Parameter(torch.zeros(len(self.blocks)))
        self.scale = float(weight.abs().sum(dim=1).mean().clamp(min=1e-12))
        count = len(self.blocks)
        self.fixed_bytes = size_of(lambda: NarrowRowsEmbedding(shape, [1] * count, [0] * count))
        self.widths: Widths | None = None
        self.rows: Tensor | None = None

    def _block(self, ids: Tensor) -> Tensor:
        return block_of(ids, self.blocks)

    def _margin(self, rows: Tensor, block: Tensor) -> Tensor:
        """Return by how much the norms of rows exceed their thresholds."""
        return rows.abs().sum(dim=-1) / self.scale - self.thresholds[block]

    def lookup(self, ids: Tensor) -> Tensor:
        """Return masked rows: [*] to float32 [*, dim]."""
        rows, block = self.table(ids), self._block(ids)
        columns = torch.arange(self.embedding_dim, device=ids.device)
        if self.widths is not None and self.rows is not None:
            width = torch.tensor(self.widths, device=ids.device)[block]
            chosen: Tensor = rows * ((columns < width.unsqueeze(-1)) & self.rows[ids].unsqueeze(-1))
            return chosen
        rows = rows * LongTailedStep.apply(self._margin(rows, block)).unsqueeze(-1)  # type: ignore[no-untyped-call]
        if self.training:
            width = torch.randint(1, self.embedding_dim + 1, ids.shape, device=ids.device)
            rows = rows * (columns < width.unsqueeze(-1))
        return self._without_padding(ids, rows)

    def penalty(self) -> Tensor | None:
        """Return what pushes the thresholds up."""
        return self.alpha * torch.exp(-self.thresholds).sum()

    @torch.no_grad()
    def margins(self) -> Tensor:
        """Return by how much the norm of each row, as far as it is known, exceeds its threshold; padding never does."""
        margin = self._margin(self.table.weight * self.known, self._block(torch.arange(self.shape.rows)))
        if self.padding_idx is not None:
            margin[self.padding_idx] = -torch.inf
        return margin

    def kept(self, start: SearchForm) -> StoredEmbedding:
        """Return the start's values in the chosen rows and columns."""
        assert isinstance(start, SupernetTable)
        assert self.widths is not None
        assert self.rows is not None
        return NarrowTable(self.shape, start.table.weight, self.rows, list(self.widths))

    def stored_bytes(self) -> int:
        """Return the bytes aimed at; without a target, those of half the values."""
        full = self.fixed_bytes + 4 * self.shape.rows * self.shape.dim
        return full // 2 if self.target is None else min(max(self.target, self.fixed_bytes), full)

    def outcome(self) -> dict[str, Any]:
        """Return widths and rows."""
        assert self.rows is not None
        return {"widths": list(self.widths or ()), "rows": int(self.rows.sum())}


class NarrowTable(MaskedTable):
    """A dense table of which only chosen rows and the first columns of each field are seen and trained."""

    def __init__(self, shape: TableShape, weight: Tensor, rows: Tensor, widths: list[int]) -> None:
        sizes = torch.tensor([block.rows for block in blocks(shape)])
        each = torch.repeat_interleave(torch.tensor(widths), sizes)
        super().__init__(shape, weight, (torch.arange(shape.dim) < each.unsqueeze(1)) & rows.unsqueeze(1))
        self.rows, self.widths = rows.clone(), widths

    def stored_bytes(self) -> int:
        """Return the bytes of the stored form."""
        kept = [int(self.rows[b.start : b.start + b.rows].sum()) for b in blocks(self.shape)]
        return size_of(lambda: NarrowRowsEmbedding(self.shape, self.widths, kept))

    def stored(self) -> StoredEmbedding:
        """Return the narrow rows."""
        return NarrowRowsEmbedding.from_dense(self.shape, self.table.weight, self.rows, self.widths)


class PlainThresholdSteps(Hook):
    """Moves thresholds by plain gradient descent, in place of the optimiser of the other weights."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    @torch.no_grad()
    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Take the step and hide the gradient from the optimiser."""
        for form in search_forms(model).values():
            assert isinstance(form, SupernetTable)
            if form.thresholds.grad is not None:
                form.thresholds.add_(form.thresholds.grad, alpha=-self.rate)
                form.thresholds.grad = None


class Candidates:
    """What lists of widths mean for tables: which rows fit beside them, and how many bytes that takes."""

    def __init__(self, forms: Sequence[SupernetTable]) -> None:
        self.forms = forms
        self.dim = max(form.embedding_dim for form in forms)
        self.sizes = [len(form.blocks) for form in forms]
        self.orders = [form.margins().argsort(descending=True, stable=True) for form in forms]
        self.alive = [int((form.margins() > 0).sum()) for form in forms]

    def choose(self, widths: Widths) -> None:
        """Let each table see the widths and, in the order of their margins, the rows that fit its bytes."""
        first = 0
        for form, size, order, alive in zip(self.forms, self.sizes, self.orders, self.alive, strict=True):
            form.widths = self._own(form, widths[first : first + size])
            first += size
            costs = self._costs(form, form.widths, order)
            count = alive if form.target is None else int((costs.cumsum(0) <= self._left(form)).sum())
            form.rows = torch.zeros(form.shape.rows, dtype=torch.bool)
            form.rows[order[:count]] = True
            if form.padding_idx is not None:
                form.rows[form.padding_idx] = False

    def repair(self, widths: Widths, draws: random.Random) -> Widths:
        """Widen random fields until the rows above their thresholds use up the bytes of their table."""
        found: list[int] = []
        for form, size, order, alive in zip(self.forms, self.sizes, self.orders, self.alive, strict=True):
            own = list(self._own(form, widths[len(found) : len(found) + size]))
            if form.target is not None:
                while min(own) < form.embedding_dim:
                    if int(self._costs(form, tuple(own), order)[:alive].sum()) >= self._left(form):
                        break
                    own[draws.choice([n for n, width in enumerate(own) if width < form.embedding_dim])] += 1
            found += own
        return tuple(found)

    @staticmethod
    def _own(form: SupernetTable, widths: Widths) -> Widths:
        return tuple(min(width, form.embedding_dim) for width in widths)

    @staticmethod
    def _costs(form: SupernetTable, widths: Widths, order: Tensor) -> Tensor:
        """Return the bytes of each row, int64 [rows], in the order given."""
        return 4 * torch.tensor(widths)[form._block(order)]

    @staticmethod
    def _left(form: SupernetTable) -> int:
        """Return the bytes of the target that values may take."""
        assert form.target is not None
        return form.target - form.fixed_bytes


class OptimalTables(SearchedTables):
    """Drop rows whose norm stays below a learned threshold, give each field its own width, and train again.

    Source: OptEmbed, CIKM 2022 (arXiv 2208.04482). Stage one trains a supernet in which every lookup draws its width;
    stage two evolves one width a field by the validation score; stage three trains what was chosen from the weights
    that stage one started from. Published code loses its best candidate, pairs scores with the wrong candidates, cuts
    children beyond their end, and ignores size. The parents here are the best candidates ever scored, the best of them
    is returned, each is scored once, and every candidate uses exactly the bytes of a given `share`: a table keeps the
    rows with the largest margins that fit beside its widths, so that evolution weighs rows against columns. Other
    differences: norms are divided by the table's mean norm at the start, because the step's slope vanishes beyond 1 and
    thresholds would never move; rows are chosen by norms weighed by what training saw of them (`importance`); fewer
    generations by default, since candidates differ by little more than noise.
    """

    card = Card(
        name="emb-optembed",
        family="embeddings",
        summary="Drop rows by learned thresholds and evolve one width a field under the byte budget, then train again.",
        acts_on=TABLES,
        source="CIKM 2022, arXiv 2208.04482",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    finds_size = True
    counts_ids = True
    makes = (NarrowRowsEmbedding,)
    threshold_rate: float = Field(1e-2, ge=0, le=1, description="learning rate of the thresholds")
    alpha: float = Field(1e-5, ge=0, le=1, description="weight of the loss that pushes thresholds up")
    generations: int = Field(10, ge=1, le=1000, description="generations of the evolution, 20 candidates each")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:  # noqa: ARG002
        """Return the supernet of a table, started from its weights."""
        weight = wanted.table.weight.detach().float()
        return SupernetTable(wanted.shape, weight, wanted.target, self.alpha, wanted.counts)

    def search_hooks(self, task: Task, context: Context) -> Sequence[Hook]:  # noqa: ARG002
        """Return the thresholds' own descent."""
        return (PlainThresholdSteps(self.threshold_rate),)

    def decide(self, model: nn.Module, forms: Sequence[SearchForm], task: Task, context: Context) -> None:
        """Evolve widths for all fields of all tables together by the validation score."""
        candidates = Candidates([form for form in forms if isinstance(form, SupernetTable)])
        draws = random.Random(int(torch.randint(2**31, (1,), generator=context.generator)))

        def fitness(widths: Widths) -> float:
            candidates.choose(widths)
            return task.score(model, "validation")

        evolution = Evolution(sum(candidates.sizes), candidates.dim, self.generations)
        best, score, scored = evolution.run(fitness, draws, lambda widths: candidates.repair(widths, draws))
        candidates.choose(best)
        context.findings["evolution"] = {"score": score, "candidates": scored}

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:  # noqa: ARG002
        """Record nothing before the search."""
        return {}
