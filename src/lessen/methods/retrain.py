"""How training-time methods start and train: from a fresh build where that is possible, by the one loop."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from lessen.capabilities import capabilities
from lessen.errors import TaskError
from lessen.method import Context
from lessen.stored.base import StoredModule
from lessen.task import Task

if TYPE_CHECKING:
    from lessen.train.hooks import Hook


def fresh(model: nn.Module, task: Task, context: Context) -> nn.Module:
    """Return an untrained model of the same architecture, or `model` itself when a build would lose something of it.

    What was done is recorded in `context.findings["start"]`: "fresh build" or "given model".
    """
    if not _altered(model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            built = task.build()
        if _shapes(built) == _shapes(model):
            context.findings["start"] = "fresh build"
            return built
    context.findings["start"] = "given model"
    return model


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _altered(model: nn.Module) -> bool:
    """Tell whether the given model carries what a fresh build would lose: earlier steps, hooks, frozen weights."""
    hooked = any(m._forward_hooks or m._forward_pre_hooks or isinstance(m, StoredModule) for m in model.modules())
    return hooked or any(not parameter.requires_grad for parameter in model.parameters())


def train(
    model: nn.Module, task: Task, context: Context, epochs: int | None = None, hooks: tuple[Hook, ...] = ()
) -> None:
    """Train `model` in place by the task's settings (at most `epochs`), leaving torch's global generator as it was.

    Raises:
        TaskError: the task cannot train.
    """
    if "training" not in capabilities(task):
        raise TaskError(f"task {task.name!r} cannot train; set fine_tune_epochs to 0 or give it a train split")
    settings = task.settings if epochs is None else dataclasses.replace(task.settings, epochs=epochs)
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        result = task.train(model, seed=context.seed, settings=settings, hooks=hooks, log=context.log)
    context.train_seconds += time.perf_counter() - start
    context.findings["trained"] = {"epochs": result.epochs, "best_epoch": result.best_epoch}


def fine_tune(model: nn.Module, task: Task, context: Context, epochs: int | None = None) -> None:
    """Train a model that works already, and keep it as it was if no epoch is better on validation rows.

    Raises:
        TaskError: the task cannot train.
    """
    if "training" not in capabilities(task) or task.settings.keep != "best":
        return train(model, task, context, epochs)
    before, state = task.score(model, "validation"), {key: own.clone() for key, own in model.state_dict().items()}
    train(model, task, context, epochs)
    if task.score(model, "validation") < before:
        model.load_state_dict(state)
        context.findings["trained"]["best_epoch"] = 0
        context.log.note("training made the model no better on validation rows; it stays as it was before")
    return None
