"""ALPT: tables that are 8, 4 or 2 bit codes while they train, with a learned step for each row."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.embeddings._shared.bilevel import without_side_effects
from lessen.methods.embeddings._shared.budget import nearest_choice
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings._shared.trained_form import TrainedQuantizer, TrainingForm
from lessen.methods.embeddings.lsq import fake_quantise, scaled_gradient
from lessen.methods.sites import TABLES
from lessen.stored import bits
from lessen.stored.tables import rowwise
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.task import Task
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings


class Proposal(NamedTuple):
    """Rows that a step moved, before they are rounded again."""

    ids: Tensor
    """Distinct, ascending, int64 [n]."""
    rows: Tensor
    """float32 [n, dim]."""
    steps: Tensor
    """float32 [n, 1], a leaf whose gradient is wanted."""


class AdaptiveCodesTable(TrainingForm):
    """int8 codes and one float32 step a row; no float table exists, only the rows of the batch become floats."""

    codes: Tensor
    steps: Tensor

    def __init__(self, shape: TableShape, weight: Tensor, bits: int) -> None:
        super().__init__(shape)
        self.bits = bits
        top = 2 ** (bits - 1)
        self.low, self.high = -top, top - 1
        steps = nearest_steps(weight, self.low, self.high)
        self.register_buffer("steps", steps)
        self.register_buffer("codes", (weight / steps).round().clamp(self.low, self.high).to(torch.int8))
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.proposal: Proposal | None = None

    def served_steps(self, ids: Tensor) -> Tensor:
        """Return the steps as stored rows hold them, float32 [*, 1]: rounded to fp16 below 8 bits."""
        steps = self.steps[ids]
        return steps if self.bits == 8 else steps.half().float()

    def lookup(self, ids: Tensor) -> Tensor:
        """Return rows: [*] to float32 [*, dim]; in training they are leaves whose gradients move the codes."""
        if not self.training:
            return self._without_padding(ids, self.codes[ids].float() * self.served_steps(ids))
        if self.proposal is not None:
            return self._without_padding(ids, self._proposed(ids))
        distinct, place = ids.long().unique(return_inverse=True)  # type: ignore[no-untyped-call]
        rows = (self.codes[distinct].float() * self.steps[distinct]).requires_grad_()
        self.seen.append((distinct, rows))
        return self._without_padding(ids, rows[place])

    def _proposed(self, ids: Tensor) -> Tensor:
        assert self.proposal is not None
        place = torch.searchsorted(self.proposal.ids, ids.long())
        scale = 1.0 / math.sqrt(max(1, ids.numel()) * self.embedding_dim * self.high)
        step = scaled_gradient(self.proposal.steps[place], scale)
        return fake_quantise(self.proposal.rows[place], step, self.bits)

    def take_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the distinct ids of the last step, ascending, and the gradient of their rows [n, dim]; forget them."""
        parts = [(ids, rows.grad) for ids, rows in self.seen if rows.grad is not None]
        self.seen = []
        if not parts:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.embedding_dim)
        ids, place = torch.cat([ids for ids, _ in parts]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        gradient = torch.zeros(len(ids), self.embedding_dim)
        return ids, gradient.index_add_(0, place, torch.cat([gradient for _, gradient in parts]))

    @torch.no_grad()
    def store(self, ids: Tensor, rows: Tensor, steps: Tensor) -> None:
        """Set the steps [n, 1] of distinct ids and round their rows [n, dim] to them at random, without bias."""
        steps = steps.abs() + 1e-10
        level = stochastic_round((rows / steps).clamp(self.low, self.high)).clamp_(self.low, self.high)
        self.steps[ids] = steps
        self.codes[ids] = level.to(torch.int8)

    def stored_bytes(self) -> int:
        """Return the bytes of the packed rows."""
        return self.shape.rows * rowwise.row_bytes(self.shape.dim, self.bits)

    def stored(self) -> StoredEmbedding:
        """Return the same codes in torch's row-wise layout: scale = step, bias = step * lowest code."""
        made = QuantizedEmbedding(self.shape, self.bits)
        steps = self.served_steps(torch.arange(self.shape.rows))
        parameters = torch.cat([steps, steps * self.low], dim=1)
        if self.bits < 8:
            parameters = parameters.half()
        levels = (self.codes.to(torch.int16) - self.low).to(torch.uint8)
        made.packed.copy_(torch.cat([bits.pack(levels, self.bits), parameters.view(torch.uint8)], dim=1))
        return made


def nearest_steps(weight: Tensor, low: int, high: int) -> Tensor:
    """Return the step of each row, float32 [rows, 1], whose grid comes nearest to the row in squared error.

    Tried are 31 steps from the one at which the largest value is not clipped downwards. Rows of zeros get a
    thousandth of the mean step.
    """
    largest = weight.abs().amax(dim=1, keepdim=True) / high
    best, least = largest, torch.full_like(largest, math.inf)
    for part in torch.linspace(1.05, 0.3, 31).tolist():
        steps = (part * largest).clamp(min=1e-30)
        error = ((weight / steps).round().clamp(low, high) * steps - weight).square().sum(dim=1, keepdim=True)
        best = torch.where(error < least, steps, best)
        least = torch.minimum(error, least)
    return best.clamp(min=1e-3 * float(best.mean()) + 1e-8)


def stochastic_round(values: Tensor) -> Tensor:
    """Return floor(x + u), u uniform in [0, 1) for each value by itself: the expectation is x."""
    return torch.floor(values + torch.rand_like(values))


class RowSteps:
    """Adam in 2 bytes a value and 12 a row: the first moment in bfloat16, the second as rows times columns.

    Moments of a row are corrected by how often that row moved. The first moment matters more here than in float:
    random rounding adds a variance in proportion to the size of each move, and a mean over moves is smaller. Columns
    count too, because a flat table holds first-order weights, whose gradients are far larger, next to vectors.
    """

    def __init__(self, rows: int, width: int, decays: tuple[float, float] = (0.9, 0.999)) -> None:
        self.decays = decays
        self.first = torch.zeros(rows, width, dtype=torch.bfloat16)
        self.second, self.column = torch.zeros(rows), torch.zeros(width)
        self.count, self.last = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
        self.now = 0

    def waited(self, ids: Tensor) -> Tensor:
        """Begin a step that moves distinct rows; return how many steps ago each was moved, float32 [n, 1]."""
        self.now += 1
        since = self.now - self.last[ids]
        self.last[ids] = self.now
        return since.float().unsqueeze(1)

    def direction(self, ids: Tensor, gradient: Tensor) -> Tensor:
        """Return the running mean of the gradients [n, width] of distinct rows over their root mean square."""
        slow, slower = self.decays
        self.count[ids] += 1
        count = self.count[ids].float()
        square = gradient.square()
        first = self.first[ids].float() * slow + (1 - slow) * gradient
        second = self.second[ids] * slower + (1 - slower) * square.mean(dim=1)
        self.first[ids], self.second[ids] = first.to(torch.bfloat16), second
        if len(ids):
            self.column = self.column * slower + (1 - slower) * square.mean(dim=0)
        column = self.column / self.column.mean().clamp(min=1e-30)
        size = ((second / (1 - slower**count)).unsqueeze(1) * column).sqrt() + 1e-8
        return first / ((1 - slow**count).unsqueeze(1) * size)


class AlternatingSteps(Hook):
    """Moves codes and steps after every step of the network: rows first, then, by a second forward, their steps."""

    parallel = False  # gradients of rows are not the optimiser's, so that nobody sums them over processes

    def __init__(self, task: Task, settings: FitSettings, step_rate: float) -> None:
        self.task, self.settings, self.step_rate = task, settings, step_rate
        self.batch: Any = None
        self.rows: dict[AdaptiveCodesTable, RowSteps] = {}
        self.steps: dict[AdaptiveCodesTable, RowSteps] = {}

    def start(self, model: nn.Module) -> None:
        """Find the tables."""
        for form in model.modules():
            if isinstance(form, AdaptiveCodesTable):
                self.rows[form] = RowSteps(form.shape.rows, form.shape.dim)
                self.steps[form] = RowSteps(form.shape.rows, 1)

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002
        """Remember the batch for the second forward."""
        self.batch = batch
        return loss

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Move the rows of the batch, learn their steps, and round them again."""
        for form, state in self.rows.items():
            form.proposal = self._moved(form, state)
        try:
            gradients = self._step_gradients(model)
        finally:
            proposals = {form: form.proposal for form in self.rows}
            for form in self.rows:
                form.proposal = None
        for form, gradient in zip(self.rows, gradients, strict=True):
            proposal = proposals[form]
            assert proposal is not None
            steps = proposal.steps.detach()
            if gradient is not None:
                steps = steps - self.step_rate * self.steps[form].direction(proposal.ids, gradient)
            form.store(proposal.ids, proposal.rows, steps)

    @torch.no_grad()
    def _moved(self, form: AdaptiveCodesTable, state: RowSteps) -> Proposal:
        ids, gradient = form.take_gradient()
        steps = form.steps[ids]
        rows = form.codes[ids].float() * steps
        # decay reaches the rows of the batch only: the others would have to be rounded again; where the penalty is
        # on all rows at every step, rows catch up on the steps they were not in
        waited = state.waited(ids) if self.settings.table_updates == "dense" else 1.0
        gradient = gradient + self.settings.table_l2 * waited * rows
        return Proposal(ids, rows - self.learning_rate * state.direction(ids, gradient), steps.requires_grad_())

    def _step_gradients(self, model: nn.Module) -> tuple[Tensor | None, ...]:
        """Return the gradient of each table's steps on the same batch, the network as it is now."""
        leaves = [form.proposal.steps for form in self.rows if form.proposal is not None]
        with without_side_effects(model):
            loss = self.task.loss(model, self.batch)
            return torch.autograd.grad(loss, leaves, allow_unused=True)


class AdaptiveLowPrecisionTables(TrainedQuantizer):
    """Train tables as 8, 4 or 2 bit codes: rows of the batch are moved and rounded back at random, row by row.

    Source: ALPT, AAAI 2023 (arXiv 2212.05735), Algorithm 1: after each step of the network the moved rows are rounded
    deterministically in a second forward, which gives the gradient of their steps. No float copy of a table exists at
    any time. Stored in torch's row-wise layout, whose operators serve it; its 8 bit rows spend 4 bytes on a bias that
    the symmetric grid would not need. Differences: Adam's state is 2 bytes a value (the published one costs twice the
    float32 table); table penalties reach the rows of the batch only, with what they missed since they last were in
    one; from a given model rows start at its weights and steps at the least squared error of each row, where
    2 mean|e| / sqrt(2^(bits-1)) is far too coarse. AUC against the trained model it started from, three seeds:
    MovieLens +0.0011 at 8 bits, -0.0018 at 4; a synthetic log -0.0011 and -0.0050. `emb-lsq`, whose float table must
    fit in memory while training, is smaller and no worse below 8 bits (+0.0026 and -0.0052 at 4).
    """

    card = Card(
        name="emb-alpt",
        family="embeddings",
        summary="Train tables as low-bit codes with a learned step a row; no float table exists even in training.",
        acts_on=TABLES,
        source="AAAI 2023, arXiv 2212.05735",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (QuantizedEmbedding,)
    bits: Literal[8, 4, 2] = Field(8, description="bits of each value")
    step_rate: float = Field(2e-5, ge=0, le=1, description="learning rate of the rows' steps")

    def reject(self, table: Any) -> str | None:
        """Return the reason to leave a table alone, or None."""
        if getattr(table, "mode", None) == "max":
            return "pools by max, for which no quantised operator exists"
        if not rowwise.representable(table.weight.detach().float(), 4):
            return "holds values beyond 65504"
        return super().reject(table)

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:  # noqa: ARG002
        """Return the codes of a table, started from its weights."""
        bits: int = self.bits
        if wanted.target is not None:
            sizes = [(b, wanted.shape.rows * rowwise.row_bytes(wanted.shape.dim, b)) for b in rowwise.BITS]
            bits = nearest_choice(sizes, wanted.target)
        return AdaptiveCodesTable(wanted.shape, wanted.table.weight.detach().float(), bits)

    def trained(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train with the alternating steps and return the packed form."""
        steps = AlternatingSteps(task, task.settings, self.step_rate)
        retrain.train(model, task, context, hooks=(steps,))
        return self.finish(model, context)

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return the bits."""
        assert isinstance(made, AdaptiveCodesTable)
        return {"bits": made.bits}
