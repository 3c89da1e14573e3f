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


def projections(model: nn.Module, task: Task, count: int, probes: int = 4) -> Iterator[Callable[[], Tensor]]:
    """Yield what returns the mean over examples of the answers along random signs, `probes` times a train batch.

    The mean square slope of these is that of all answers together: how much they move, to first order, where a part is
    weakened. A loss that stands at its least has no slope; answers have one.
    """
    device = device_of(model)
    model.eval()
    draw = torch.Generator().manual_seed(0)
    for batch in batches_of(task, count):
        given = to_device(batch, device)
        for _ in range(probes):

            def along(given: Any = given) -> Tensor:
                answers = task.forward(model, given).float()
                signs = torch.randint(0, 2, answers.shape, generator=draw).to(answers) * 2 - 1
                return (answers * signs).flatten(1).sum(1).mean()

            yield along


def closeness(model: nn.Module, task: Task, count: int) -> Callable[[], float]:
    """Return what says how near the answers to the same train batches are to those given now, at most 0.

    The mean square of the difference, as a share of that of the answers, is what is negative. It needs no labels and
    sees every value that a model answers, where a loss of few examples or a recall sees little.
    """
    device = device_of(model)
    given = [to_device(batch, device) for batch in batches_of(task, count)]
    model.eval()
    with torch.no_grad():
        wanted = [task.forward(model, batch).float() for batch in given]
    whole = sum(float(answer.square().mean()) for answer in wanted) or 1.0

    def near() -> float:
        found = (task.forward(model, batch).float() for batch in given)
        return -sum(float((a - b).square().mean()) for a, b in zip(found, wanted, strict=True)) / whole

    return near
