"""What a model is asked while parts of it are valued: the task's loss on train batches, or its own metric."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import NonFiniteError, TaskError
from lessen.task import Task
from lessen.train.device import device_of, to_device


def batches_of(task: Task, count: int) -> list[Any]:
    """Return the first batches of the train split. Raises TaskError where there are none."""
    found = list(itertools.islice(task.batches("train"), count))
    if not found:
        raise TaskError(f"task {task.name!r} has an empty train split: nothing to value parts on")
    return found


def losses(model: nn.Module, task: Task, count: int) -> Iterator[Callable[[], Tensor]]:
    """Yield, for each of `count` train batches, what returns its loss, the model in eval mode.

    Raises:
        TaskError: the train split is empty.
        NonFiniteError: a loss is NaN or infinite.
    """
    model.eval()
    for number, batch in enumerate(batches_of(task, count)):
        given = to_device(batch, device_of(model))

        def loss(given: Any = given, number: int = number) -> Tensor:
            value = task.loss(model, given)
            if not bool(torch.isfinite(value)):
                raise NonFiniteError(f"the loss of train batch {number + 1} of task {task.name!r} is {float(value)}")
            return value

        yield loss


def mean_loss(model: nn.Module, task: Task, count: int) -> Callable[[], float]:
    """Return what gives the mean loss of the same train batches each time it is called, negative: higher is better."""
    each = list(losses(model, task, count))
    return lambda: -sum(float(loss()) for loss in each) / len(each)


def metric(model: nn.Module, task: Task) -> Callable[[], float]:
    """Return what gives the task's first metric on its validation split, higher is better."""
    return lambda: task.score(model, "validation")
