"""LoRA: a frozen model adapted by low-rank corrections of its linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import replace
from lessen.methods.weights._shared.conv1d import linearised
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.task import Task


class LoRA(ModuleMethod):
    """Freeze the model and train y = W x + (alpha / rank) B A x in its linear layers, B zero at first.

    Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685). A is drawn as a
    linear layer's weights are and B is zero, as there, so that training starts from the given model. Differences: no
    dropout in front of A, and every eligible linear layer is adapted unless `only` or `skip` say otherwise (the paper:
    query and value projections). What is stored beside a named base is A and B.
    """

    card = Card(
        name="lora",
        family="adapt",
        summary="Adapt a frozen model by low-rank corrections of its linear layers.",
        acts_on=(nn.Linear,),
        source="Hu et al. 2021, arXiv 2106.09685",
        needs=frozenset({"gradients", "training"}),
        claims=frozenset({"quality"}),
    )
    keeps_base = True
    rank: int = Field(4, ge=1, le=4096, description="rank of a correction; a layer's smaller side caps it")
    alpha: float = Field(8.0, gt=0, le=1e4, description="corrections are multiplied by alpha / rank")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs at most; the task's own by default")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Wrap the layers, train the corrections, and leave the rest as it was.

        Raises:
            NothingMatchedError: no linear layer is eligible.
            TaskError: the task cannot train.
        """
        model, settle = self.wrapped(model, context)
        retrain.train(model, task, context, epochs=self.epochs)
        settle()
        return model

    def wrapped(self, model: nn.Module, context: Context) -> tuple[nn.Module, Callable[[], None]]:
        """Return the model with corrections, which alone require gradients, and what lets the rest require them again.

        Raises:
            NothingMatchedError: no linear layer is eligible.
        """
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear,), context, self._reject, (LowRankDelta,))
        trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
        for parameter in trainable:
            parameter.requires_grad_(False)
        for site in sites:
            rank = min(self.rank, site.module.in_features, site.module.out_features)
            made = LowRankDelta.around(site.module, rank, self.alpha / self.rank, context.generator)
            model = replace(model, site, made)
        context.findings["trained parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)

        def settle() -> None:
            for parameter, before in trainable.items():
                parameter.requires_grad_(before)

        return model, settle

    def _reject(self, layer: Any) -> str | None:
        narrow = layer.weight.element_size() < 4
        return f"holds {layer.weight.dtype}, which corrections cannot train in" if narrow else None
