"""Reading what a classifier holds inside: the layer that gives its scores, what enters it, and layers on the way.

Layers are named by what they do, not by their class, so that a compact model is read at the same places as the model it
came from, whatever stands there now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lessen.judges.suite import CannotAnswer
from lessen.task import Split, Task
from lessen.train.device import device_of, to_device


@contextmanager
def evaluated(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into eval mode for the block."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


def few(task: Task, split: Split, most: int) -> list[Any]:
    """Return the first batches of a split that together hold `most` examples or more."""
    found, count = [], 0
    for batch in task.batches(split):
        found.append(batch)
        count += task.units_in(batch)
        if count >= most:
            break
    return found


@torch.no_grad()
def head_of(model: nn.Module, task: Task, suite: str) -> str:
    """Return the path of the last module that turns features [n, width] into the scores [n, classes] of a classifier.

    Raises:
        CannotAnswer: the output is no row of scores an example, or no single module gives it.
    """
    batch = next(iter(task.batches("test")))
    seen: list[tuple[str, int]] = []
    outputs: list[Tensor] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            one = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            if isinstance(output, Tensor) and one is not None and one.ndim == 2 and output.ndim <= 2:
                seen.append((name, len(outputs)))
                outputs.append(output.detach())

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with evaluated(model):
            scores = task.forward(model, to_device(batch, device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise CannotAnswer(
            f"suite {suite!r} needs one row of scores an example; {type(model).__name__} gives {tuple(scores.shape)}"
        )
    for name, at in reversed(seen):
        if outputs[at].shape == scores.shape and torch.equal(outputs[at].float(), scores.float()):
            inner = [other for other, _ in seen if other != name and other.startswith(f"{name}.")]
            if not inner:
                return name
    raise CannotAnswer(f"suite {suite!r}: no single layer of {type(model).__name__} gives its scores")


@torch.no_grad()
def entering(
    model: nn.Module, paths: Sequence[str], calls: Sequence[Any], forward: Callable[[nn.Module, Any], Any], suite: str
) -> dict[str, Tensor]:
    """Return what enters each of the modules at `paths`, over all calls: float32 [examples, ...] on the CPU.

    Raises:
        CannotAnswer: the model has no such module, or never calls it.
    """
    known = dict(model.named_modules())
    missing = next((path for path in paths if path not in known), None)
    if missing is not None:
        raise CannotAnswer(f"suite {suite!r}: {type(model).__name__} has no layer {missing!r} any more")
    found: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, keywords: Mapping[str, Any]) -> None:  # noqa: ARG001
            value = inputs[0] if inputs else next(iter(keywords.values()))
            found[path].append(value.detach().float().cpu())

        return hook

    hooks = [known[path].register_forward_pre_hook(keep(path), with_kwargs=True) for path in paths]
    try:
        with evaluated(model):
            for call in calls:
                forward(model, to_device(call, device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    idle = next((path for path, values in found.items() if len(values) != len(calls)), None)
    if idle is not None:
        raise CannotAnswer(f"suite {suite!r}: the layer {idle!r} is not called once an input")
    return {path: torch.cat(values) for path, values in found.items()}
