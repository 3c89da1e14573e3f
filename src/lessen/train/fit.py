"""The one training loop: early stopping, plateau decay, best-weights restore, exact resume, hooks.

Methods that train never write a loop of their own; they pass hooks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.errors import NonFiniteError, TaskError
from lessen.log import SILENT, Log


@dataclass(frozen=True)
class FitSettings:
    """How to train. `epochs` is a cap; training stops earlier when validation stops improving."""

    epochs: int = 30
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    table_l2: float = 0.0
    """lambda/2 * ||V||^2 summed over whole embedding tables, added to the mean loss (as FuxiCTR does)."""
    clip_norm: float | None = 10.0
    patience: int = 2
    """Stop after this many epochs without improvement."""
    plateau_factor: float = 0.1
    """Learning rate is multiplied by this at each epoch without improvement."""
    minimum_learning_rate: float = 1e-6


class Hook:
    """Extends the loop. Every method may be overridden; the base does nothing."""

    def start(self, model: nn.Module) -> None:
        """Run once before the first step."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return a term added to the loss of every step."""
        return None

    def before_step(self, model: nn.Module, step: int) -> None:
        """Run after the gradients are known and before the optimiser moves."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Run after the optimiser moved; `step` counts from 1."""

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:
        """Run after validation; `epoch` counts from 1."""


@dataclass
class FitResult:
    """What training did."""

    best_score: float
    best_epoch: int
    epochs: int
    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: nn.Module,
    *,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[nn.Module, Any], Tensor],
    validate: Callable[[nn.Module], float],
    settings: FitSettings,
    hooks: Sequence[Hook] = (),
    seed: int = 0,
    log: Log = SILENT,
    checkpoint: Path | None = None,
) -> FitResult:
    """Train `model` in place and leave it in eval mode with the weights of its best epoch.

    Args:
        batches: gives the batches of epoch 1, 2, ...
        validate: score of the model, higher is better, called once an epoch.
        checkpoint: if given, the state is saved there after each epoch, and training continues from it.

    Raises:
        TaskError: the train split is empty.
        NonFiniteError: the loss became NaN or infinite.
    """
    raise NotImplementedError
