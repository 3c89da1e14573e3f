"""A Recipe: an ordered list of methods, written in Python or YAML, hashed, and applied to a private copy of a model."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from lessen.architectures.intake import check_state, private_copy
from lessen.errors import ConfigError, TaskError, explain, nearest
from lessen.log import SILENT, Log
from lessen.method import Context, Method, check_finite, check_needs
from lessen.methods import get_method
from lessen.methods.replaced import called, check_called, check_replaced, tree_of
from lessen.methods.sites import state_bytes
from lessen.task import Task
from lessen.train.device import device_of

KEYS = ("name", "curve", "steps")
VERSION = "version"
"""Key beside the knobs of a method in a recipe file."""


@dataclass(frozen=True)
class StepRecord:
    """One line of the step ledger."""

    method: str
    family: str
    claims: list[str]
    """What the method claims to save; the report flags a claim that was not borne out."""
    knobs: dict[str, Any]
    bytes_before: int
    bytes_after: int
    seconds: float
    train_seconds: float
    findings: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Methods applied one after another. `Recipe([])` is the uncompressed model."""

    steps: Sequence[Method]
    name: str = ""
    curve: str = ""
    """Name that recipes share which are rates of one codec: their points are one line."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not self.name:
            object.__setattr__(self, "name", "+".join(step.card.name for step in self.steps) or "reference")

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change when a method, a knob or a method's version changes."""
        body = [[step.card.name, step.version, step.knobs()] for step in self.steps]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def keeps_base(self) -> bool:
        """Whether the result is stored as a delta to the model that it started from."""
        return any(step.keeps_base for step in self.steps)

    def describe(self) -> dict[str, Any]:
        """Return the YAML form: `{name, steps: [{method: {knob: value, version: n}}]}`, every knob resolved."""
        steps = [{step.written: {**step.knobs(), VERSION: step.version}} for step in self.steps]
        return {"name": self.name, **({"curve": self.curve} if self.curve else {}), "steps": steps}

    @classmethod
    def parse(cls, value: Any, where: str = "recipe", *, own: bool = False) -> Recipe:
        """Build a recipe from its YAML form; `own` lets steps be the user's own code, see `get_method`.

        Raises:
            ConfigError: names the key and what is allowed.
        """
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping with name and steps, found {type(value).__name__}")
        for key in value:
            if key not in KEYS:
                raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), KEYS)}")
        steps = value.get("steps")
        if not isinstance(steps, list):
            raise ConfigError(f"{where}: steps must be a list of methods")
        parsed = [parse_step(step, f"{where}: step {number}", own=own) for number, step in enumerate(steps, 1)]
        return cls(parsed, name=str(value.get("name", "")), curve=str(value.get("curve", "")))

    def apply(
        self, model: nn.Module, task: Task, *, seed: int = 0, log: Log = SILENT, form_only: bool = False
    ) -> tuple[nn.Module, list[StepRecord]]:
        """Apply the steps to a deep copy of `model`, in eval mode, and return the result with its step ledger.

        The caller's model is never changed. `form_only`: see `Context`.

        Raises:
            NonFiniteError: NaN or infinity in the weights before or after a step, named.
            NothingMatchedError: a step found nothing to act on.
            TaskError: a step needs something that the task does not provide.
            InputError: the model fails on the task's first batch, or reaches a replaced layer outside its module tree.
        """
        for step in self.steps:
            check_needs(step, task)
        check_state(model, "the model to compress")
        check_finite(model, "the model to compress")
        current = private_copy(model)
        ledger: list[StepRecord] = []
        kept, reads = tree_of(current), called(current, task) if self.steps else None
        judge = task
        for number, step in enumerate(self.steps):
            context = Context(
                seed=seed * 1009 + number, log=log, device=device_of(current), original=model, form_only=form_only
            )
            before, start, tree = state_bytes(current), time.perf_counter(), tree_of(current)
            task = self._prepared(step, task, context)
            current = step.apply(current, task, context).eval()
            seconds = time.perf_counter() - start
            check_finite(current, f"the result of step {number + 1} ({step.card.name})")
            check_replaced(model, tree, current, step.card.name)
            ledger.append(
                StepRecord(
                    step.card.name,
                    step.card.family,
                    sorted(step.card.claims),
                    step.knobs(),
                    before,
                    state_bytes(current),
                    seconds,
                    context.train_seconds,
                    context.findings,
                )
            )
        check_called(reads, current, judge, kept)
        return current, ledger

    def rehearse(self, task: Task) -> None:
        """Find out on an untrained model, before any training, whether the steps on tables can do what they are asked.

        Ends where a step would train, or where one acts on something else than tables.

        Raises:
            NothingMatchedError, BudgetError, TaskError: as `apply` would, after the reference was trained.
        """
        for step in self.steps:
            check_needs(step, task)
        if not self.steps or self.steps[0].card.family != "embeddings":
            return
        with suppress(_Trains), torch.random.fork_rng(devices=[]):
            model = private_copy(task.build())
            for step in itertools.takewhile(lambda step: step.card.family == "embeddings", self.steps):
                model = step.apply(model, task.view(train=_stop), Context(original=model))

    def _prepared(self, step: Method, task: Task, context: Context) -> Task:
        """Return the task as `step` prepares it. Raises TaskError when it changes what the judge sees."""
        prepared = step.prepare(task, context)
        if prepared is not task and prepared.fingerprint() != task.fingerprint():
            raise TaskError(
                f"{step.card.name} changes the validation or test data of task {task.name!r}; "
                "a recipe may change what is trained on, never what judges it"
            )
        return prepared


class _Trains(Exception):
    """A rehearsal came to a training."""


def _stop(*_: Any, **__: Any) -> Any:
    raise _Trains


def parse_step(value: Any, where: str, *, own: bool = False) -> Method:
    """Build one method from `name` or `{name: {knob: value}}`. Raises ConfigError naming the knob."""
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigError(f"{where}: expected one method, written METHOD or METHOD: {{knob: value}}")
    ((name, knobs),) = value.items()
    cls = get_method(str(name), where, own=own)
    if knobs is None:
        knobs = {}
    if not isinstance(knobs, Mapping):
        raise ConfigError(f"{where}: the knobs of {name} must be a mapping, found {type(knobs).__name__}")
    given = {str(key): item for key, item in knobs.items()}
    _check_version(cls, given.pop(VERSION, cls.version), where)
    try:
        return cls(**given)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, str(name), cls.model_fields)}") from error


def _check_version(cls: type[Method], version: Any, where: str) -> None:
    """Raise ConfigError unless `version` is the one that this installation has."""
    if version != cls.version or isinstance(version, bool):
        raise ConfigError(
            f"{where}: {cls.card.name} version {version!r} is not the one here, {cls.version}, and its figures would "
            f"differ; install the lessen that wrote the recipe, or remove `{VERSION}` to run it as it is now"
        )
