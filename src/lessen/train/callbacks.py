"""Scalars of a training for whoever keeps them: MLflow, Weights & Biases, TensorBoard, a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lessen.errors import ConfigError
from lessen.train.hooks import Hook


class Scalars(Hook):
    """Hands loss, learning rate and validation scores to a callable, `to({"loss": 0.3, ...}, step=7)`.

    Scalars(mlflow.log_metrics)
    Scalars(wandb.log, every=50)
    Scalars(lambda values, step: rows.append({"step": step, **values}))

    Args:
        to: called with a mapping of names to numbers and the keyword `step`, which counts from 1.
        every: steps between two reports of the loss; its mean over them is told. Scores are told after each epoch.

    Raises:
        ConfigError: `every` is below 1.
    """

    def __init__(self, to: Callable[..., Any], every: int = 1) -> None:
        if every < 1:
            raise ConfigError(f"Scalars(every={every}) is not accepted: report each step (1) or fewer of them")
        self.to, self.every = to, every
        self._losses: list[float] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Pass on the values when it is time."""
        if "loss" not in values:
            self.to(dict(values), step=step)
            return
        self._losses.append(values["loss"])
        if step % self.every == 0:
            mean = sum(self._losses) / len(self._losses)
            self._losses = []
            self.to({**values, "loss": mean}, step=step)
