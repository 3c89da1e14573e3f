"""SPN4CIR: the query side trained against every target there is, while the targets' vectors stay as they are."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.capabilities import HasBank
from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.modules import ModuleMethod
from lessen.retrieval.banks import bank_loss
from lessen.task import Task
from lessen.train.teachers import evaluating


class SPN4CIR(ModuleMethod):
    """Train the query side of a retriever on, with the vectors of all targets, encoded once, as negatives.

    Source: Feng et al., ACM MM 2024, arXiv 2404.11317: the second stage. What encodes targets is frozen and found by
    asking which parameters the bank depends on, so that an index of them stays valid, bit for bit: that is checked.
    Differences: any task whose `target` names rows of a `bank`; more positives from captions (the first half of the
    paper) are the task's own matter; Adam's epsilon and the schedule are the task's.
    """

    card = Card(
        name="spn4cir",
        family="retrieval",
        summary="Train the query side against all targets as negatives; the index of targets stays valid.",
        acts_on=("model",),
        source="SPN4CIR, Feng et al. 2024, arXiv 2404.11317",
        needs=frozenset({"bank", "gradients", "labels", "training"}),
        claims=frozenset(),
    )
    temperature: float = Field(0.02, gt=0, le=100, description="tau, divides the cosines")
    negatives: int | None = Field(
        None, ge=1, le=1 << 24, description="targets drawn as negatives in each step; none: all"
    )
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs; none: the task's own")
    learning_rate: float | None = Field(None, gt=0, le=100, description="largest rate; none: the task's")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the model.

        Raises:
            TaskError: the task cannot train, queries and targets share all parameters, or training moved the bank.
        """
        held = cast("HasBank", task)
        towers = _behind(model, held)
        trained = [one for one in model.parameters() if one.requires_grad and id(one) not in towers]
        if not trained:
            raise TaskError(
                f"{self.card.name}: every parameter that can train is one that targets are encoded with; a query side "
                "of its own is needed, or the index would have to be encoded again"
            )
        frozen = [one for one in model.parameters() if one.requires_grad and id(one) in towers]
        with evaluating(model), torch.no_grad():
            bank = torch.as_tensor(held.bank(model)).clone()
        generator = torch.Generator().manual_seed(context.seed)

        def loss(student: nn.Module, batch: Any) -> Tensor:
            rows = task.target(batch).flatten().to(bank.device)
            return bank_loss(task.forward(student, batch), bank, rows, self.temperature, self.negatives, generator)

        changes: dict[str, Any] = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        settings = dataclasses.replace(task.settings, **changes)
        for one in frozen:
            one.requires_grad_(False)
        try:
            retrain.train(model, task.view(loss=loss, settings=settings), context, self.epochs)
        finally:
            for one in frozen:
                one.requires_grad_(True)
        with evaluating(model), torch.no_grad():
            if not torch.equal(torch.as_tensor(held.bank(model)), bank):
                raise TaskError(f"{self.card.name}: training moved the bank, though no parameter behind it was trained")
        context.findings |= {
            "targets": len(bank), "trained": sum(one.numel() for one in trained),
            "frozen": sum(one.numel() for one in frozen),
        }  # fmt: skip
        return model


def _behind(model: nn.Module, task: HasBank) -> set[int]:
    """Return the identities of the parameters that the bank depends on."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    with evaluating(model), torch.enable_grad():
        bank = torch.as_tensor(task.bank(model))
    if not bank.requires_grad or not parameters:
        return set()
    found = torch.autograd.grad(bank.float().sum(), parameters, allow_unused=True)
    return {id(one) for one, slope in zip(parameters, found, strict=True) if slope is not None}
