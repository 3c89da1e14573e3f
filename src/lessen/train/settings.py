"""How a model is trained: the typed settings of the one training loop, refused in one line where they contradict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from lessen.errors import ConfigError

OptimizerName = Literal["adam", "adamw", "sgd", "muon"]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class FitSettings:
    """How to train. `epochs` is a cap; training stops earlier when validation stops improving.

    Raises:
        ConfigError: a value has the wrong type or is out of range, or two values contradict each other.
    """

    epochs: Positive = 30
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    optimizer: OptimizerName = "adam"
    """`sgd` has momentum 0.9; `muon` moves matrices of hidden layers, and AdamW the rest (see `train.optimizers`)."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    table_l2: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """lambda/2 * ||V||^2 summed over whole embedding tables, added to the mean loss (as FuxiCTR does)."""
    table_updates: Literal["dense", "lazy-adam", "rowwise-adagrad"] = "dense"
    """How `nn.Embedding` and `nn.EmbeddingBag` move. The last two cost what a batch touches, not what a table holds;
    `table_l2` then reaches only the rows of the batch."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 10.0
    patience: Annotated[int, Field(ge=0)] | None = 2
    """Stop after this many epochs without improvement, under any schedule; none: never."""
    plateau_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate is multiplied by this at each epoch without improvement."""
    minimum_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6
    """Floor of `plateau`; where `cosine` and `linear` end."""
    schedule: Literal["plateau", "constant", "cosine", "linear"] = "plateau"
    """Of the learning rate, see `train.schedules`."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises linearly from near 0, under any schedule."""
    decay_steps: Positive | None = None
    """Last steps in which `cosine` or `linear` fall, the rate being constant before; none: all after the warm-up."""
    steps: Positive | None = None
    """Optimiser steps to train, in place of `epochs`."""
    steps_per_epoch: Positive | None = None
    """Steps after which the model is judged and the checkpoint written; none: one pass over the batches."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Stop after this many seconds of training and judging; the step under way is finished, and the model judged."""
    accumulate: Positive = 1
    """Batches whose gradients are averaged into one step. BatchNorm sees them one at a time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: the loss is computed under autocast to bfloat16, weights and optimiser stay as they are. bfloat16 has the
    exponents of float32, so that no loss scaling is needed."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decays of the moments of `adam` and `adamw`, and of the AdamW beside `muon`."""
    keep: Literal["best", "last"] = "best"
    """Weights to end with: those of the best epoch, or the last ones."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of holding them, for models that offer it (Hugging Face)."""

    def __post_init__(self) -> None:
        """Check types, ranges and combinations. Raises ConfigError."""
        for name, adapter in _adapters().items():
            try:
                adapter.validate_python(getattr(self, name), strict=True)
            except ValidationError as error:
                problem = "; or ".join(dict.fromkeys(entry["msg"].lower() for entry in error.errors()))
                raise ConfigError(f"training: {name} = {getattr(self, name)!r} is not accepted: {problem}") from error
        falls = self.schedule in ("cosine", "linear")
        if self.decay_steps is not None and not falls:
            raise ConfigError(f"training: decay_steps belongs to the schedules cosine and linear, not {self.schedule}")
        if falls and self.minimum_learning_rate > self.learning_rate:
            raise ConfigError(
                f"training: the schedule {self.schedule} falls from learning_rate = {self.learning_rate} to "
                f"minimum_learning_rate = {self.minimum_learning_rate}, which is higher; lower the second"
            )


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(FitSettings, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(FitSettings)}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train in a way of their own; what is None is as the settings have it."""

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0
    """On the learning rate at every step."""
    weight_decay: float | None = None
    optimizer: OptimizerName | None = None

    def __post_init__(self) -> None:
        """Check the values. Raises ConfigError."""
        if not self.factor >= 0 or self.factor == float("inf"):
            raise ConfigError(f"a parameter group has factor = {self.factor}; give a finite number from 0 on")
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"a parameter group has weight_decay = {self.weight_decay}; give a number from 0 on")
        if self.optimizer not in (None, "adam", "adamw", "sgd", "muon"):
            raise ConfigError(f"a parameter group has optimizer = {self.optimizer!r}; allowed: adam, adamw, muon, sgd")
