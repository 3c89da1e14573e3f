"""What one check is given, and how it says that the contract does not hold."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lessen.method import Method
from lessen.metrics import Outcomes
from lessen.recipe import Recipe, StepRecord
from lessen.task import Split, Task, call_model


class ContractError(AssertionError):
    """A method does not keep the contract; the message lists what was promised and what was found."""


class NotApplicable(Exception):
    """The check does not concern this method."""


@dataclass(frozen=True)
class Case:
    """A method, the task it is tried on, and results that several checks share."""

    method: Method
    task: Task

    @cached_property
    def model(self) -> nn.Module:
        """The trained reference; checks must not change it."""
        return self.task.reference(seed=0)

    @cached_property
    def applied(self) -> tuple[nn.Module, list[StepRecord]]:
        """The method applied once under seed 0."""
        return self.apply(self.model)

    @property
    def result(self) -> nn.Module:
        """The compact model; checks must not change it."""
        return self.applied[0]

    def apply(self, model: nn.Module, seed: int = 0, task: Task | None = None) -> tuple[nn.Module, list[StepRecord]]:
        """Run the method as a recipe of one step."""
        return Recipe([self.method]).apply(model, task or self.task, seed=seed)

    @cached_property
    def batch(self) -> Any:
        """One test batch."""
        return self.task.example_batch()

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Tensor:
        """Return the outputs of a model in eval mode on the test batch."""
        return call_model(model.eval(), self.task.inputs(self.batch))


def expect(held: bool, promise: str) -> None:
    """Raise ContractError with `promise` unless it was held."""
    if not held:
        raise ContractError(promise)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all that a method must leave alone in a caller's model: tensors, types, flags and hooks."""
    modules = {
        path: (type(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for path, module in model.named_modules()
    }
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return {"modules": modules, "flags": flags, "tensors": copy.deepcopy(dict(model.state_dict()))}


def same_state(left: dict[str, Any], right: dict[str, Any]) -> str | None:
    """Return the first difference between two states, or None when they agree bit for bit."""
    if list(left) != list(right):
        return f"the tensors are {sorted(set(left) ^ set(right))[:3]} in one state only"
    for name, value in left.items():
        other = right[name]
        if not isinstance(value, Tensor):
            continue
        if value.dtype != other.dtype or value.shape != other.shape:
            return (
                f"{name} is {value.dtype} {tuple(value.shape)} in one, {other.dtype} {tuple(other.shape)} in the other"
            )
        if not torch.equal(_raw(value), _raw(other)):
            return f"{name} differs"
    return None


def _raw(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, so that NaN equals itself and -0 differs from 0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


class Recorded(Task):
    """A task whose batches are made once, as they are asked for, and checked afterwards: methods must not write into
    them. A task may draw training batches without an end.
    """

    def __init__(self, inner: Task) -> None:
        self.inner = inner
        self.name, self.metrics = inner.name, inner.metrics
        self.settings, self.provides = inner.settings, inner.provides
        self.kept: dict[tuple[str, int], list[Any]] = {}
        self.coming: dict[tuple[str, int], Iterator[Any]] = {}
        self.views: list[Recorded] = []

    def view(self, **changes: Any) -> Recorded:
        """Return the inner task with some operations exchanged, recorded too."""
        self.views.append(Recorded(self.inner.view(**changes)))
        return self.views[-1]

    def build(self) -> nn.Module:
        """Return the inner task's model."""
        return self.inner.build()

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        """Yield the same batch objects each time."""
        if (split, seed) not in self.kept:
            self.kept[split, seed], self.coming[split, seed] = [], iter(self.inner.batches(split, seed))
        kept = self.kept[split, seed]
        for place in itertools.count():
            if place == len(kept):
                try:
                    kept.append(next(self.coming[split, seed]))
                except StopIteration:
                    return
            yield kept[place]

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return the inner task's outcomes; where it has none of its own, those of the recorded batches."""
        own = type(self.inner).outcomes is not Task.outcomes
        return self.inner.outcomes(model, split) if own else super().outcomes(model, split)

    def changed(self) -> str | None:
        """Return the split that was written into, or None."""
        for (split, seed), batches in self.kept.items():
            fresh = list(itertools.islice(self.inner.batches(split, seed), len(batches)))  # type: ignore[arg-type]
            if _tensors(fresh) != _tensors(batches):
                return split
        return next((found for view in self.views if (found := view.changed()) is not None), None)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the inner task's loss."""
        return self.inner.loss(model, batch)

    def inputs(self, batch: Any) -> Any:
        """Return the inner task's inputs."""
        return self.inner.inputs(batch)

    def target(self, batch: Any) -> Tensor:
        """Return the inner task's labels."""
        return self.inner.target(batch)

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the inner task's scores."""
        return self.inner.predict(model, batch)


def _tensors(value: Any) -> list[Any]:
    """Return the content of nested batches as comparable values."""
    if isinstance(value, Tensor):
        return [value.dtype, tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes()]
    if isinstance(value, dict):
        return [item for key in sorted(value) for item in (key, *_tensors(value[key]))]
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in _tensors(part)]
    return [repr(value)]
