"""Stationary representations: a new version of a model whose features are searched in the gallery of the old one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.distil._shared.features import penultimate
from lessen.methods.modules import ModuleMethod
from lessen.retrieval.compatible import SHARPNESS, higher_order_loss
from lessen.stored.linears.simplex_head import SimplexHead
from lessen.task import Task
from lessen.train.device import device_of, to_device
from lessen.train.hooks import Hook
from lessen.train.taps import INPUT


class StationaryCompat(ModuleMethod):
    """Train with a classifier that is fixed for all versions, and hold features to those of the version before.

    Source: Biondi et al., CVPR 2024, arXiv 2405.02581: the d-Simplex head and the higher-order compatible loss. The
    last linear layer becomes a projection to `classes` - 1 numbers, which are the features that are searched, and
    products with the corners of a simplex. A model that has such a head already is the old version: it is trained on,
    with the loss against its frozen self. Differences: others of the same class are left out of that loss, where the
    code keeps exp(0) of them; the projection's start is drawn as torch's linear layers are; memory of earlier tasks is
    the task's own matter.
    """

    card = Card(
        name="stationary-compat",
        family="retrieval",
        summary="Train a version whose features are searched in the old version's gallery: no re-encoding.",
        acts_on=("model",),
        source="Stationary Representations, Biondi et al. 2024, arXiv 2405.02581",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset(),
    )
    classes: int = Field(64, ge=2, le=1 << 16, description="corners: classes that all versions will ever have (K)")
    weight: float = Field(0.1, gt=0, le=1, description="share of the task's loss beside the compatible one (lambda)")
    sharpness: float = Field(SHARPNESS, gt=0, le=1000, description="factor on products of features (mu)")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs; none: the task's own")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the model.

        Raises:
            TaskError: the task cannot train, or no linear layer runs. ConfigError: there are fewer corners than
            classes, or the old version has another number of them.
        """
        heads = self.parts(model, SimplexHead)
        if not heads:
            made = with_simplex(model, task, self.classes, context.seed)
            retrain.train(made, task, context, epochs=self.epochs)
            return made
        if heads[-1].classes != self.classes:
            raise ConfigError(
                f"{self.card.name}: the model has {heads[-1].classes} corners and classes = {self.classes} asks for "
                "others; features of the two would not meet"
            )
        hook = _Compatible(copy.deepcopy(model), task, self)
        retrain.train(model, task, context, epochs=self.epochs, hooks=(hook,))
        return model


def with_simplex(model: nn.Module, task: Task, classes: int, seed: int) -> nn.Module:
    """Return the model with a simplex head in place of the linear layer that runs last; the head is not trained.

    Raises:
        TaskError: no linear layer runs. ConfigError: it has more outputs than there are corners.
    """
    path = penultimate(model, task.forward, task.example_batch()).removesuffix(INPUT)
    old = model.get_submodule(path)
    assert isinstance(old, nn.Linear)
    if old.out_features > classes:
        raise ConfigError(f"{path} has {old.out_features} classes, more than the {classes} corners that were asked for")
    made = SimplexHead(old.in_features, old.out_features, classes)
    bound = old.in_features**-0.5
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.project.copy_(torch.empty_like(made.project).uniform_(-bound, bound, generator=generator))
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, made.to(old.weight))
    return model


def features_of(model: nn.Module, task: Task, batch: Any) -> Tensor:
    """Return what the simplex head of a model makes of a batch, float [B, K - 1]."""
    head = next(one for one in model.modules() if isinstance(one, SimplexHead))
    caught: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        task.forward(model, to_device(batch, device_of(model)))
    finally:
        handle.remove()
    return head.embed(caught[-1]).flatten(0, -2)


class _Compatible(Hook):
    """Adds the loss against the frozen version before."""

    def __init__(self, old: nn.Module, task: Task, method: StationaryCompat) -> None:
        self.old, self.task, self.method = old.eval(), task, method

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:
        """Return both terms, weighted."""
        with torch.no_grad():
            before = features_of(self.old, self.task, batch)
        now = features_of(model, self.task, batch)
        labels = torch.as_tensor(self.task.target(batch), device=now.device).flatten()
        extra = higher_order_loss(now, before, labels, self.method.sharpness)
        return self.method.weight * loss + (1 - self.method.weight) * extra
