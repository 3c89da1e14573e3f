"""What a method may add to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Hook:
    """Extends the loop. Every method may be overridden; the base does nothing.

    Several hooks are called in the order in which they were given. State that must survive a killed training stands in
    `module`, in trainable parameters or in buffers of the model; nothing else of a hook is in the checkpoint.
    """

    parallel: bool = True
    """Whether it works where each process sees its own rows of a batch. A term that is a mean over rows does, and so
    does one of the weights alone; what needs all rows of a batch in one place says False and is refused there."""
    module: nn.Module | None = None
    """Parameters of its own that train beside the model's, such as the projection of a hint; known after `start`."""
    learning_rate: float = 0.0
    """Of the step under way; the loop sets it."""

    def start(self, model: nn.Module) -> None:
        """Run once before the first step."""

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002 - subclasses use them
        """Return the loss to minimise, given the task's (after the hooks before this one), a scalar with its graph.

        `batch` is what the task's loss was computed on, on the device. The loop runs it under the same autocast.
        """
        return loss

    def before_step(self, model: nn.Module, step: int) -> None:
        """Run after the gradients are known and before the optimiser moves."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Run after the optimiser moved; `step` counts from 1."""

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:
        """Run after validation; `epoch` counts from 1. The score is NaN without validation."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of `loss` and `learning_rate` after each step, and of `score` and `epoch` after each epoch."""

    def finish(self, model: nn.Module) -> None:
        """Run once when training ends, also when it fails: the place to take off what `start` put on."""
