"""Inputs that may be absent: which a task has, how they are left out of a batch, and what quality is left.

A task says so by two members, `optional` (names) and `without(batch, keep)` with keep bool [B, names]; of a click task
the fields of its layout are optional, an absent id being 0, which is padding, and an absent number 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.capabilities import HasColumns
from lessen.errors import ConfigError, TaskError, nearest
from lessen.method import Context
from lessen.methods.distil._shared.distilled import Trained
from lessen.task import Split, Task

SEPARATOR = "+"
"""Joins names that are present or absent together."""


class Optional:
    """The optional inputs of a task, in groups.

    Args:
        groups: names, or several joined by `+`, that are left out together; None: each name alone.

    Raises:
        TaskError: the task's inputs have no optional parts.
        ConfigError: a name is not one of them, or is in two groups.
    """

    def __init__(self, task: Task, groups: Sequence[str] | None = None) -> None:
        self.task = task
        own = getattr(task, "optional", None)
        if own is None and not isinstance(task, HasColumns):
            raise TaskError(
                f"the inputs of task {task.name!r} have no optional parts; give it `optional`, their names, and "
                "`without(batch, keep)`, which leaves them out"
            )
        self.names = tuple(own) if own is not None else _columns(task)
        self.groups = self.names if groups is None else tuple(groups)
        seen: set[str] = set()
        self.members = [group.split(SEPARATOR) for group in self.groups]
        for name in (name for group in self.members for name in group):
            if name not in self.names:
                raise ConfigError(f"{name!r} is no optional input of task {task.name!r}; {nearest(name, self.names)}")
            if name in seen:
                raise ConfigError(f"{name!r} stands in two groups of optional inputs; give it once")
            seen.add(name)

    def without(self, batch: Any, keep: Tensor) -> Any:
        """Return a batch whose rows lack the groups that `keep`, bool [B, groups], leaves out."""
        if bool(keep.all()):
            return batch
        each = torch.ones(len(keep), len(self.names), dtype=torch.bool)
        for place, group in enumerate(self.members):
            for name in group:
                each[:, self.names.index(name)] = keep[:, place]
        own = getattr(self.task, "without", None)
        return own(batch, each) if own is not None else _blank(self.task, batch, each)

    def drawn(self, batch: Any, rate: float, generator: torch.Generator) -> Any:
        """Return a batch whose rows each lack each group with the chance `rate`, drawn apart."""
        if rate == 0:
            return batch
        keep = torch.rand(self.task.units_in(batch), len(self.groups), generator=generator) >= rate
        return self.without(batch, keep)

    def patterns(self) -> dict[str, list[bool]]:
        """Return which groups are kept, by what is said of it: all, without each one, none."""
        count = len(self.groups)
        found = {"all": [True] * count}
        for place, group in enumerate(self.groups):
            found[f"without {group}"] = [other != place for other in range(count)]
        return found if count == 1 else {**found, "none": [False] * count}

    def scores(self, model: nn.Module, split: Split = "validation") -> dict[str, float]:
        """Return the task's first metric for each pattern, the same for all rows."""
        return {name: self.score(model, keep, split) for name, keep in self.patterns().items()}

    def score(self, model: nn.Module, keep: Sequence[bool], split: Split) -> float:
        """Return the task's first metric, higher being better, where every row lacks what `keep` leaves out."""

        def batches(which: Split, seed: int = 0) -> Any:
            for batch in self.task.batches(which, seed):
                yield self.without(batch, torch.tensor([list(keep)] * self.task.units_in(batch)))

        return Task.score(self.task.view(batches=batches), model, split)


def _columns(task: Any) -> tuple[str, ...]:
    return (*(field.name for field in task.layout.fields), *task.layout.numeric)


def _blank(task: Any, batch: Any, keep: Tensor) -> Any:
    """Return a batch of a click task with padding and zeros in place of what is absent."""
    inputs = dict(batch[0])
    keep = keep.to(inputs["ids"].device)
    widths = torch.tensor([field.width for field in task.layout.fields], device=keep.device)
    fields = len(widths)
    inputs["ids"] = inputs["ids"] * keep[:, :fields].repeat_interleave(widths, dim=1)
    if "numeric" in inputs:
        inputs["numeric"] = inputs["numeric"] * keep[:, fields:]
    return (inputs, *batch[1:])


class MissingInputs(Trained):
    """Trains a model on rows that lack optional inputs now and then."""

    inputs: tuple[str, ...] | None = Field(
        None, description="optional inputs, NAME or NAME+NAME for what is left out together; none: each that there is"
    )
    rate: float = Field(0.5, ge=0, le=1, description="chance that a row lacks an input, drawn apart for each")

    def dropping(self, task: Task, context: Context) -> tuple[Task, Optional]:
        """Return the task with a loss on rows that lack inputs, judged by the mean of complete and empty rows.

        Raises:
            TaskError, ConfigError: see `Optional`.
        """
        optional = Optional(task, self.inputs)
        ends = ([True] * len(optional.groups), [False] * len(optional.groups))

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return task.loss(model, optional.drawn(batch, self.rate, context.generator))

        def score(model: nn.Module, split: Split = "validation") -> float:
            return sum(optional.score(model, keep, split) for keep in ends) / len(ends)

        changes: dict[str, Callable[..., Any]] = {"loss": loss, **({"score": score} if self.rate else {})}
        return task.view(**changes), optional
