"""Searches in which weights learn on one part of the train split and the architecture on another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.task import Split, Task
from lessen.train.device import device_of, to_device
from lessen.train.hooks import Hook


class HeldOut:
    """Divides the train split for the time of a search: every n-th batch of one fixed order is the architecture's.

    The validation split stays what decides when training stops.
    """

    def __init__(self, task: Task, every: int, seed: int) -> None:
        self.task, self.every, self.seed = task, every, seed
        self._stream: Iterator[Any] = iter(())

    def _part(self, held: bool) -> Iterator[Any]:
        for number, batch in enumerate(self.task.batches("train", seed=self.seed)):
            if (number % self.every == self.every - 1) == held:
                yield batch

    def training(self) -> Task:
        """Return the task without the held-out batches; each epoch sees the others in the same order."""

        def batches(split: Split, seed: int = 0) -> Any:
            return self._part(held=False) if split == "train" else self.task.batches(split, seed=seed)

        return self.task.view(batches=batches)

    def next(self) -> Any:
        """Return the next held-out batch, from the first again after the last.

        Raises:
            TaskError: the train split has fewer than `every` batches.
        """
        for _ in range(2):
            for batch in self._stream:
                return batch
            self._stream = self._part(held=True)
        raise TaskError(
            f"the search keeps every {self.every}th train batch for itself, and the train split of task "
            f"{self.task.name!r} has fewer; set held_out lower or give it smaller batches"
        )


class ArchitectureSteps(Hook):
    """Moves the architecture, after each step of the weights, by the loss on the next held-out batch."""

    parallel = False  # the second forward would share BatchNorm statistics and skip the sum of gradients

    def __init__(self, held_out: HeldOut) -> None:
        self.held_out = held_out

    def architecture(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that the optimiser of the weights must leave alone."""
        raise NotImplementedError(f"{type(self).__name__}.architecture")

    def move(self, model: nn.Module, gradients: list[Tensor], batch: Any) -> None:
        """Move the architecture by its gradients, in the order of `architecture`."""
        raise NotImplementedError(f"{type(self).__name__}.move")

    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Hide the gradients of the training loss."""
        for parameter in self.architecture(model):
            parameter.grad = None

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Take one step of the architecture."""
        batch, parameters = to_device(self.held_out.next(), device_of(model)), self.architecture(model)
        with without_side_effects(model):
            loss = self.held_out.task.loss(model, batch)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
        with torch.no_grad():
            self.move(model, gradients, batch)


@contextmanager
def without_side_effects(model: nn.Module) -> Iterator[None]:
    """Let a second forward in training mode leave batch-norm statistics alone and drop nothing out."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    drops = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    for drop in drops:
        drop.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for drop in drops:
            drop.training = True
