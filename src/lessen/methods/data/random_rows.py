"""Train on a random part of the training examples: the control of every data recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import nn

from lessen.method import Card, Context, Method
from lessen.methods import retrain
from lessen.task import Split, Task


class RandomRows(Method):
    """Keep a random share of the training batches, the same ones in every epoch, and train the model anew on them.

    A control, as in every study of data selection (for instance GraNd and EL2N, Paul et al. 2021, arXiv 2107.07075):
    a method that chooses must beat chance at equal cost. Batches are drawn, so that any task can be thinned; a task
    whose batches change from epoch to epoch keeps the share, not the rows.
    """

    card = Card(
        name="data-random-rows",
        family="data",
        summary="Train on a random share of the training examples.",
        acts_on=("data",),
        source="control of Paul et al. 2021, arXiv 2107.07075",
        needs=frozenset({"training"}),
        claims=frozenset({"train_s"}),
    )
    share: float = Field(0.5, gt=0, le=1, description="share of the training batches to keep")

    def prepare(self, task: Task, context: Context) -> Task:
        """Return the task with fewer training batches; the judge's splits stay as they are."""
        seed, share = context.seed, self.share

        def batches(split: Split, seed_of_epoch: int = 0) -> Iterator[Any]:
            if split != "train":
                yield from task.batches(split, seed_of_epoch)
                return
            generator = torch.Generator().manual_seed(seed)
            for number, batch in enumerate(task.batches(split, seed)):  # one order, so that the rows stay the same
                if not number or float(torch.rand((), generator=generator)) < share:
                    yield batch

        return task.view(batches=lambda split, seed=0: batches(split, seed))

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train anew, from a fresh build where nothing is lost by it. Raises TaskError: the task cannot train."""
        model = retrain.fresh(model, task, context)
        retrain.train(model, task, context)
        return model
