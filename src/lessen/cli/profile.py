"""Where the bytes of a model are, and a forecast: each method that needs no training is tried on a copy."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError
from torch import nn

from lessen.errors import LessenError
from lessen.method import Method
from lessen.methods import builtin_methods
from lessen.recipe import Recipe, state_bytes
from lessen.stored.base import StoredModule
from lessen.task import Task


@dataclass(frozen=True)
class Part:
    """One module that holds tensors of its own."""

    path: str
    kind: str
    rows: int | None
    width: int | None
    bytes: int
    share: float


@dataclass(frozen=True)
class Forecast:
    """What a method at its default knobs leaves of the model."""

    method: str
    family: str
    bytes: int | None
    share: float | None
    remark: str


@dataclass(frozen=True)
class Profile:
    """Modules, largest first, and forecasts, smallest first."""

    total_bytes: int
    modules: list[Part]
    forecasts: list[Forecast]


def examine(model: nn.Module, task: Task) -> Profile:
    """Return the profile of `model`, which is not changed."""
    total = state_bytes(model)
    parts = [part for path, module in model.named_modules() if (part := _part(path, module, total))]
    forecasts = [_forecast(name, cls, model, task, total) for name, cls in builtin_methods().items()]
    forecasts.sort(key=lambda one: (one.bytes is None, one.bytes or 0, one.method))
    return Profile(total, sorted(parts, key=lambda part: -part.bytes), forecasts)


def _part(path: str, module: nn.Module, total: int) -> Part | None:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    count = sum(tensor.numel() * tensor.element_size() for tensor in own)
    if not count:
        return None
    matrix = next((tensor for tensor in own if tensor.dim() == 2), None)
    kind = module.kind if isinstance(module, StoredModule) else type(module).__name__
    rows, width = (int(matrix.shape[0]), int(matrix.shape[1])) if matrix is not None else (None, None)
    return Part(path or "(the model itself)", kind, rows, width, count, count / max(1, total))


def _forecast(name: str, cls: type[Method], model: nn.Module, task: Task, total: int) -> Forecast:
    card = cls.card
    if card.needs & {"training", "gradients", "teacher"}:
        return Forecast(name, card.family, None, None, "retrains: try it with lessen compress")
    try:
        small, _ = Recipe([cls()]).apply(model, task)
    except ValidationError:
        return Forecast(name, card.family, None, None, f"needs knobs: see lessen methods {name}")
    except LessenError as error:
        return Forecast(name, card.family, None, None, str(error).partition(";")[0])
    left = state_bytes(small)
    return Forecast(name, card.family, left, left / max(1, total), card.summary)
