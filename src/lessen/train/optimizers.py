"""Optimisers by name, and the L2 penalty on whole embedding tables written straight into their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from lessen.train.fit import FitSettings


def build_optimizer(parameters: Sequence[nn.Parameter], settings: FitSettings) -> torch.optim.Optimizer:
    """Return the optimiser that `settings` names; one fused kernel walks all parameters when their types allow."""
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": fused}
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, **options)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    return torch.optim.SGD(parameters, momentum=0.9, **options)


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate, equal for all parameters."""
    return float(optimizer.param_groups[0]["lr"])


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value


class TableDecay:
    """lambda/2 * ||V||^2 over every row of every trainable table, rows the batch never touched included.

    The gradient of the penalty is lambda * V, so it is added to the gradient directly: no graph is built and no
    table is squared. A table shared by several modules counts once, as it would in a sum over parameters.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        self.strength = strength
        tables = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        self.weights = list({id(m.weight): m.weight for m in tables if m.weight.requires_grad}.values())

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add lambda * V to the gradient of each table."""
        if self.strength == 0.0:
            return
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = weight.detach() * self.strength
            else:
                weight.grad.add_(weight, alpha=self.strength)
