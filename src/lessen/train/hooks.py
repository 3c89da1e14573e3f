"""What a method may add to the training loop."""

from __future__ import annotations

from torch import Tensor, nn


class Hook:
    """Extends the loop. Every method may be overridden; the base does nothing."""

    def start(self, model: nn.Module) -> None:
        """Run once before the first step."""

    def penalty(self, model: nn.Module) -> Tensor | None:  # noqa: ARG002 - subclasses use it
        """Return a term added to the loss of every step."""
        return None

    def before_step(self, model: nn.Module, step: int) -> None:
        """Run after the gradients are known and before the optimiser moves."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Run after the optimiser moved; `step` counts from 1."""

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:
        """Run after validation; `epoch` counts from 1."""

    def finish(self, model: nn.Module) -> None:
        """Run once when training ends, also when it fails: the place to take off what `start` put on."""
