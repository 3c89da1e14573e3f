"""UNIT: a network learns a new domain and keeps the features that it had, through a decoder that is thrown away."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Trained, probe
from lessen.methods.distil._shared.features import penultimate
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device
from lessen.train.taps import Outputs
from lessen.train.teachers import DistilHook, Teacher


class UNIT(Trained):
    """Train on the task and add the distance of decoded features from those that the given model had.

    UNIT, NeurIPS 2024 (arXiv 2409.04095): its feature-keeping part, for any network. A perceptron of two layers maps
    each token's features to the frozen original's; the distance is 1 - cosine plus `mu` times the mean absolute
    difference. What is kept is information, not the features themselves: a head that reads raw features may still lose.
    `old` gives options of the task that make the old domain, such as {style: filled}; without it the original's
    features of the new domain's own examples are kept. Differences: the published training code is not there; mu was
    not found and is 0.5; the decoder starts as the identity, so that an untouched network has no loss; the language
    decoder and the two scales of the paper are left out; teacher and student see an example at one size.
    """

    card = Card(
        name="unit",
        family="distil",
        summary="Train a network on a new domain while a throw-away decoder keeps its old features.",
        acts_on=ACTS_ON,
        source="NeurIPS 2024, arXiv 2409.04095",
        needs=NEEDS,
        claims=CLAIMS,
    )
    weight: float = Field(1.0, ge=0, le=1e6, description="factor on the distance of features")
    mu: float = Field(0.5, ge=0, le=1e6, description="factor on the absolute difference in it")
    old: dict[str, str | int | float | bool | None] | None = Field(
        None, description="options of the task that make the old domain; none: the task's own examples"
    )
    layer: str | None = Field(
        None, description="path of the layer that is kept, PATH:input for its input; none: what enters the head"
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the model.

        Raises:
            TaskError: the task cannot train.
            ConfigError: the task has no options that `old` could change.
        """
        old = None if self.old is None else other_domain(task, self.old)
        student, settle = self._student(model, task, context)
        batch = task.example_batch()
        layer = self.layer or penultimate(student, task.forward, batch)
        teacher = Teacher(copy.deepcopy(model), task.forward, taps=(layer,))
        before = None if old is None else old.score(student)
        hook = _Kept(self, teacher, layer, task, old, context.seed)
        retrain.train(student, self.paced(task), context, epochs=self.epochs, hooks=(hook,))
        settle()
        if old is not None and before is not None:
            context.findings["old domain"] = {"before": before, "after": old.score(student)}
        return student


def other_domain(task: Task, options: dict[str, Any]) -> Task:
    """Return the task with some options changed. Raises ConfigError where it has none of these."""
    own = getattr(task, "options", None)
    fields = getattr(type(own), "model_fields", {})
    unknown = sorted(set(options) - set(fields))
    if own is None or unknown:
        raise ConfigError(
            f"unit: old = {options} changes options that task {task.name!r} lacks; it has {', '.join(fields) or 'none'}"
        )
    made: Task = type(task)(type(own)(**{**own.model_dump(), **options}))  # type: ignore[call-arg]
    return made


def rows_of(features: Tensor) -> Tensor:
    """Return features token by token, [rows, C]: of maps each cell, of tokens each, of vectors each example."""
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2).flatten(0, 1)
    return features.flatten(0, -2)


def feature_distance(found: Tensor, wanted: Tensor, mu: float) -> Tensor:
    """Return the mean over rows of 1 - cosine + mu times the mean absolute difference; features [rows, C]."""
    cosine = F.cosine_similarity(found.float(), wanted.float(), dim=1)
    return (1 - cosine).mean() + mu * (found.float() - wanted.float()).abs().mean()


class Decoder(nn.Module):
    """x + two layers of x, the last zero at first: a decoder drawn at random would move what it shall keep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [rows, C] to the same."""
        added: Tensor = self.last(F.gelu(self.first(features)))
        return features + added


class _Kept(DistilHook):
    def __init__(self, method: UNIT, teacher: Teacher, layer: str, task: Task, old: Task | None, seed: int) -> None:
        super().__init__(teacher, main_tensor, (layer,))
        self.method, self.layer, self.task, self.old, self.seed = method, layer, task, old, seed
        self._source: Iterator[Any] = iter(())

    def start(self, model: nn.Module) -> None:
        """Make the decoder for the width that one batch shows, and watch the student."""
        width = rows_of(probe(model, self.taps, self.task, self.task.example_batch())[self.layer]).shape[1]
        self.module = Decoder(width)
        super().start(model)

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:
        """Return the task's loss and the distance of features, of the old domain where there is one."""
        assert self._caught is not None
        student = self._caught.take()
        if self.old is not None:
            batch = to_device(self._next(), device_of(model))
            self.task.forward(model, batch)
            student = self._caught.take()
        return self.distil(loss, student, self.teacher(batch), batch)

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:  # noqa: ARG002
        """Return both terms, weighted."""
        assert self.module is not None
        decoded = self.module(rows_of(student[self.layer]))
        return loss + self.method.weight * feature_distance(decoded, rows_of(teacher[self.layer]), self.method.mu)

    def _next(self) -> Any:
        """Return the next batch of the old domain, pass after pass."""
        assert self.old is not None
        found = next(self._source, None)
        if found is None:
            self.seed += 1
            self._source = iter(self.old.batches("train", seed=self.seed))
            found = next(self._source)
        return found
