"""The judge `corrupted`: is a classifier as sure-footed on noisy inputs as its reference?

Every test example of a task gives two values: answer right on the input with noise, and on noise alone. The second is
the counterfactual control: a model that is right there answers from the data's habits, not from the input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import ConfigError, TaskError
from lessen.metrics import Floats, MeanMetric, Outcomes
from lessen.metrics.base import RULE
from lessen.task import Judge, Split, Task, TaskOptions
from lessen.tasks import get_task


class _Share(MeanMetric):
    """Share of examples that a column says yes to."""

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the column, float64 [examples]."""
        return outcomes[self.reads[0]].astype(np.float64)

    def resolution(self, outcomes: Outcomes) -> float:
        """Return 3 / n: the upper bound of a loss of which none was seen in n examples."""
        return RULE / len(outcomes)


class RightUnderNoise(_Share):
    """Share of examples answered right on inputs with noise."""

    name, title, reads = "right-under-noise", "right under noise", ("right",)


class RightOnNoise(_Share):
    """Share of examples answered right on noise alone: the control."""

    name, title, reads = "right-on-noise-alone", "right on noise alone (control)", ("control",)


class CorruptedOptions(TaskOptions):
    """What a study may set beside the judge's name."""

    task: str | dict[str, Any] = Field(description="classification task whose test examples are used, with its options")
    strength: float = Field(0.5, gt=0, le=100, description="of the noise, in standard deviations of the inputs")
    seed: int = Field(0, ge=0, le=2**31, description="of the noise")


class Corrupted(Judge):
    """Gaussian noise on the inputs of a classification task with tensor inputs and integer targets."""

    name = "corrupted"
    metrics = {"right": RightUnderNoise(), "control": RightOnNoise()}
    columns = ("right", "control", "target")
    Options = CorruptedOptions

    def __init__(self, options: CorruptedOptions) -> None:
        self.options = options
        self.task: Task = get_task(options.task, f"judge {self.name}: task", own=True)

    @torch.no_grad()
    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each test example, whether the answer is right with noise, and on noise alone."""
        generator = torch.Generator().manual_seed(self.options.seed)
        was_training = model.training
        model.eval()
        right, control, targets = [], [], []
        for batch in self.task.batches(split):
            inputs, target = self._checked(batch)
            noise = self.options.strength * float(inputs.std()) * torch.randn(inputs.shape, generator=generator)
            right.append(self._answers(model, inputs + noise, target) == target)
            control.append(self._answers(model, float(inputs.mean()) + noise, target) == target)
            targets.append(target)
        model.train(was_training)
        if not targets:
            raise TaskError(f"judge {self.name!r}: task {self.task.name!r} has an empty {split} split")
        joined = (torch.cat(column).numpy() for column in (right, control, targets))
        return Outcomes(dict(zip(self.columns, joined, strict=True)))

    def fingerprint(self) -> str:
        """Return the digest of the task's data with the noise that is added."""
        return f"{self.task.fingerprint()}-{self.options.strength}-{self.options.seed}"

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def _checked(self, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, target = self.task.inputs(batch), self.task.target(batch)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or target.is_floating_point():
            raise ConfigError(
                f"judge {self.name!r} needs a task whose inputs are one float tensor and whose targets are classes; "
                f"task {self.task.name!r} gives {type(inputs).__name__} and {target.dtype}"
            )
        return inputs, target

    def _answers(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        return self.task.forward(model, (inputs, target)).argmax(dim=1).cpu()
