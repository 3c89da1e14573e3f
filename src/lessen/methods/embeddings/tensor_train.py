"""TT-Rec: large fields as a tensor train, hundreds of times smaller and much slower to look up."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.retrained import RetrainedTables, Wanted, small_and_large, spread
from lessen.methods.sites import TABLES
from lessen.stored.tables.tensor_train import TensorTrainEmbedding
from lessen.task import Task
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings

LARGEST_STEP = 0.025
"""Part of a core's size that a step may move it by."""


class TensorTrainTables(RetrainedTables):
    """Compute the rows of large fields from three cores of rank `rank`; the model is trained anew.

    Source: TT-Rec, MLSys 2021 (arXiv 2101.11714). All large fields of a table form one train over their rows, ids in
    mixed radix, most significant digit first. Cores start from the tails of a normal and are then scaled so that rows
    have the deviation of the table replaced, measured rather than by formula. What the task's `table_l2` asks of a
    table's vectors is asked of the products, not of the cores, which it would pull to a product of zero. Differences:
    no cache of frequent rows (it caps the real ratio; `emb-pq-post` and `emb-adapt` keep hot rows instead), widths
    without three equal factors are padded. Use it where bytes decide and lookups do not: each costs microseconds on a
    CPU.
    """

    card = Card(
        name="emb-tt",
        family="embeddings",
        summary="Compute rows from three small tensor-train cores, and retrain.",
        acts_on=TABLES,
        source="MLSys 2021, arXiv 2101.11714",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
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

    def trained(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train the model, its cores with care."""
        retrain.train(model, task, context, hooks=(CoreTraining(task.settings),))
        return model


class CoreTraining(Hook):
    """Trains cores as what they are, factors of vectors: the penalty is on the products, and steps are small.

    A slice of a core serves many ids and moves at every step, by the learning rate whatever its size (Adam). Moves are
    scaled so that those are at most `LARGEST_STEP` of the core's root mean square at the start.
    """

    def __init__(self, settings: FitSettings) -> None:
        self.settings = settings
        self.trains: list[TensorTrainEmbedding] = []
        self.scales: list[tuple[Tensor, float]] = []
        self._before: list[Tensor] = []

    def start(self, model: nn.Module) -> None:
        """Find the cores and how much of each move they make."""
        self.trains = [module for module in model.modules() if isinstance(module, TensorTrainEmbedding)]
        for train in self.trains:
            for core in (train.first.weight, train.middle.weight, train.last.weight):
                size = float(core.detach().square().mean().sqrt())
                self.scales.append((core, min(1.0, LARGEST_STEP * size / self.settings.learning_rate)))

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002
        """Add lambda/2 * ||V||^2 over the vectors of all trains, as `TableDecay` has it for plain tables."""
        norms = [train.squared_norm() for train in self.trains] if self.settings.table_l2 else []
        return loss + self.settings.table_l2 / 2 * torch.stack(norms).sum() if norms else loss

    @torch.no_grad()
    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Note where the cores are."""
        self._before = [core.detach().clone() for core, _ in self.scales]

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Take back a part of each move."""
        for (core, scale), before in zip(self.scales, self._before, strict=True):
            core.copy_(before.lerp(core, scale))
