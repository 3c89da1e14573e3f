"""A Recipe: an ordered list of methods, written in Python or YAML, hashed, and applied to a private copy of a model."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn

from lessen.errors import ConfigError, explain, nearest
from lessen.log import SILENT, Log
from lessen.method import Context, Method, check_finite, check_needs
from lessen.methods import get_method
from lessen.task import Task


@dataclass(frozen=True)
class StepRecord:
    """One line of the step ledger."""

    method: str
    family: str
    frees: list[str]
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not self.name:
            object.__setattr__(self, "name", "+".join(step.card.name for step in self.steps) or "reference")

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change when a method, a knob or a method's version changes."""
        body = [[step.card.name, step.version, _hashed_knobs(step)] for step in self.steps]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """Return the YAML form: `{name, steps: [{method: {knob: value}}]}`, every knob resolved."""
        return {"name": self.name, "steps": [{s.card.name: s.model_dump(mode="json")} for s in self.steps]}

    @classmethod
    def parse(cls, value: Any, where: str = "recipe") -> Recipe:
        """Build a recipe from its YAML form. Raises ConfigError that names the key and what is allowed."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping with name and steps, found {type(value).__name__}")
        for key in value:
            if key not in ("name", "steps"):
                raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), ('name', 'steps'))}")
        steps = value.get("steps")
        if not isinstance(steps, list):
            raise ConfigError(f"{where}: steps must be a list of methods")
        parsed = [parse_step(step, f"{where}: step {number}") for number, step in enumerate(steps, 1)]
        return cls(parsed, name=str(value.get("name", "")))

    def apply(
        self, model: nn.Module, task: Task, *, seed: int = 0, log: Log = SILENT
    ) -> tuple[nn.Module, list[StepRecord]]:
        """Apply the steps to a deep copy of `model`, in eval mode, and return the result with its step ledger.

        The caller's model is never changed.

        Raises:
            NonFiniteError: NaN or infinity in the weights before or after a step, named.
            NothingMatchedError: a step found nothing to act on.
            TaskError: a step needs something that the task does not provide.
        """
        for step in self.steps:
            check_needs(step, task)
        check_finite(model, "the model to compress")
        current = copy.deepcopy(model).eval()
        ledger: list[StepRecord] = []
        for number, step in enumerate(self.steps):
            context = Context(seed=seed * 1009 + number, log=log)
            before, start = state_bytes(current), time.perf_counter()
            current = step.apply(current, task, context).eval()
            seconds = time.perf_counter() - start
            check_finite(current, f"the result of step {number + 1} ({step.card.name})")
            ledger.append(
                StepRecord(
                    step.card.name,
                    step.card.family,
                    sorted(step.card.frees),
                    step.model_dump(mode="json"),
                    before,
                    state_bytes(current),
                    seconds,
                    context.train_seconds,
                    context.findings,
                )
            )
        return current, ledger


def _hashed_knobs(step: Method) -> dict[str, Any]:
    """Return the knobs that tell results apart: all but `later_knobs` that are not used."""
    unused = {name for name in step.later_knobs if getattr(step, name) is None}
    return {name: value for name, value in step.model_dump(mode="json").items() if name not in unused}


def parse_step(value: Any, where: str) -> Method:
    """Build one method from `name` or `{name: {knob: value}}`. Raises ConfigError naming the knob."""
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigError(f"{where}: expected one method, written METHOD or METHOD: {{knob: value}}")
    ((name, knobs),) = value.items()
    cls = get_method(str(name), where)
    if knobs is None:
        knobs = {}
    if not isinstance(knobs, Mapping):
        raise ConfigError(f"{where}: the knobs of {name} must be a mapping, found {type(knobs).__name__}")
    try:
        return cls(**{str(key): item for key, item in knobs.items()})
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, str(name), cls.model_fields)}") from error


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of all distinct tensors in the state dictionary (tied tensors counted once)."""
    seen: dict[tuple[int, int], int] = {}
    for tensor in model.state_dict().values():
        seen[(tensor.data_ptr(), tensor.numel())] = tensor.numel() * tensor.element_size()
    return sum(seen.values())
