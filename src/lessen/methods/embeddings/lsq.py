"""Learned step size: tables trained on 8, 4 or 2 bit grids, with one step a field and nothing in the rows."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import nearest_choice, size_of
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings._shared.trained_form import TrainedQuantizer, TrainingForm
from lessen.methods.sites import TABLES
from lessen.stored.fields import block_of, cover
from lessen.stored.tables import rowwise
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.tables.step_quantized import StepQuantizedEmbedding


class LearnedStepTable(TrainingForm):
    """float32 rows and one step a block; every lookup is rounded, gradients pass as the LSQ rule says."""

    def __init__(self, shape: TableShape, weight: Tensor, bits: int) -> None:
        super().__init__(shape)
        self.bits = bits
        self.blocks = cover(shape.segments, shape.rows)
        self.table = inner_table(shape.rows, shape.dim, weight.clone())
        top = 2 ** (bits - 1)
        means = [self.table.weight[b.start : b.start + b.rows].detach().abs().mean() for b in self.blocks]
        self.steps = nn.Parameter(torch.stack(means).clamp(min=1e-6) * 2.0 / math.sqrt(top))
        self.gradient_scale = 1.0 / math.sqrt(max(1, top - 1) * self.table.weight.numel())

    def lookup(self, ids: Tensor) -> Tensor:
        """Return rounded rows: [*] to float32 [*, dim]."""
        step = self.steps.abs().clamp(min=1e-10)[block_of(ids, self.blocks)].unsqueeze(-1)
        return fake_quantise(self.table(ids), scaled_gradient(step, self.gradient_scale), self.bits)

    def stored(self) -> StoredEmbedding:
        """Return packed codes and steps."""
        steps = self.steps.detach().abs().clamp(min=1e-10)
        return StepQuantizedEmbedding.from_dense(self.shape, self.table.weight, steps, self.bits)


def scaled_gradient(value: Tensor, scale: float) -> Tensor:
    """Return `value`, whose gradient is multiplied by `scale`."""
    return value * scale + (value * (1.0 - scale)).detach()


def fake_quantise(rows: Tensor, step: Tensor, bits: int) -> Tensor:
    """Return step * round(clamp(rows / step)); the gradient is that of Esser et al. for rows and step."""
    levels = (rows / step).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    rounded = levels + (torch.round(levels) - levels).detach()
    return rounded * step


class LearnedStepTables(TrainedQuantizer):
    """Train tables on a grid of 8, 4 or 2 bits whose step each field learns; store the codes without any row header.

    Source: learned step size quantisation (arXiv 1902.08153), as the table baseline of mixed-precision embeddings
    (arXiv 2409.20305); the simple relative of ALPT (arXiv 2212.05735) for tables whose float32 master fits in memory.
    The bits are chosen where `share` is given. Differences: a step for each field instead of one for the table, no
    learned offset (LSQ+).
    """

    card = Card(
        name="emb-lsq",
        family="embeddings",
        summary="Train tables on a low-bit grid with a learned step for each field.",
        acts_on=TABLES,
        source="arXiv 1902.08153; arXiv 2409.20305; arXiv 2212.05735",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (StepQuantizedEmbedding,)
    bits: Literal[8, 4, 2] = Field(4, description="bits of each value")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:  # noqa: ARG002
        """Return the training form of a table, started from its weights."""
        bits: int = self.bits
        if wanted.target is not None:
            sizes = [(b, size_of(lambda b=b: StepQuantizedEmbedding(wanted.shape, b))) for b in rowwise.BITS]  # type: ignore[misc]
            bits = nearest_choice(sizes, wanted.target)
        return LearnedStepTable(wanted.shape, wanted.table.weight.detach().float(), bits)

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return the bits."""
        assert isinstance(made, LearnedStepTable)
        return {"bits": made.bits}
