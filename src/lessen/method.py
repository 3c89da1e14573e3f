"""The Method contract: one technique as a frozen, typed object whose fields are its knobs.

class KeepHalf(Method):
    card = Card(name="keep-half", family="weights", acts_on=(nn.Linear,), ...)
    share: float = Field(0.5, gt=0, le=1, description="share of columns kept")

    def apply(self, model, task, context): ...

prepare(task) -> task        what training and calibration see: data recipes, teachers, label sources
apply(model, task) -> model  what becomes of the model
forecast(model, task)        what it would leave, without running it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from lessen.capabilities import NAMES, capabilities
from lessen.errors import NonFiniteError, NothingMatchedError, TaskError
from lessen.log import SILENT, Log
from lessen.task import Task


@dataclass(frozen=True)
class Card:
    """What a method is, for the catalogue, the report and the checks made before it runs."""

    name: str
    """Slug used in YAML and on the command line, such as `emb-rowwise-quant`."""
    family: str
    """The folder under `methods/` that it lives in; a third party may name a family of its own."""
    summary: str
    """One sentence: what gets smaller, and how."""
    acts_on: tuple[type[nn.Module] | str, ...]
    """Module types it looks for, or words for what is no module: "blocks", "tokens", "data", "files"."""
    source: str
    """Paper and arXiv id, or the code the rule was taken from."""
    needs: frozenset[str] = frozenset()
    """Capabilities that the task must have (`lessen.capabilities`); checked by name before the method runs."""
    claims: frozenset[str] = frozenset({"bytes"})
    """What it claims to save - "bytes", "macs", "latency", a kind of cost - or "quality"; may be empty for an
    ingredient. The report flags a claim that the measurement does not bear out."""

    def __post_init__(self) -> None:
        unknown = self.needs - NAMES
        if unknown:
            raise ValueError(f"card {self.name!r} needs {sorted(unknown)[0]!r}; known: {', '.join(sorted(NAMES))}")

    @property
    def module_types(self) -> tuple[type[nn.Module], ...]:
        """The module types among `acts_on`."""
        return tuple(kind for kind in self.acts_on if isinstance(kind, type))

    @property
    def looks_for(self) -> str:
        """What it looks for, in words."""
        return ", ".join(sorted({kind if isinstance(kind, str) else kind.__name__ for kind in self.acts_on}))


@dataclass
class Context:
    """Handed to every verb of a method: the only source of randomness, a log, and a place to record findings."""

    seed: int = 0
    log: Log = SILENT
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the model is; batches and what a method makes go there."""
    findings: dict[str, Any] = field(default_factory=dict)
    """What the step learned (chosen ranks, skipped tables): JSON values, kept in the step ledger."""
    known: dict[str, Any] = field(default_factory=dict)
    """What the caller has measured already and a forecast may use: `id_counts`, rows read by table path."""
    original: nn.Module | None = None
    """The model that the recipe was given, before its first step: what a student may learn from. Never changed."""
    form_only: bool = False
    """Only the form of the result is asked for (`measure.sketch`): what moves values alone may be left out."""
    generator: torch.Generator = field(init=False)
    train_seconds: float = 0.0
    """Seconds spent in gradient training inside this step; the rest counts as compression."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Forecast:
    """What a method would leave of a model, found without running it."""

    bytes: int | None
    """Bytes of the state afterwards, or None where only a search or a training decides."""
    remark: str = ""
    smallest: float | None = None
    """The smallest share of what it acts on that it can reach, or None where it takes no share."""


class Method(BaseModel):
    """One technique. Subclasses add knobs as fields and override the verbs that they need."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    card: ClassVar[Card]
    origin: ClassVar[str | None] = None
    """Where a user's own method was named, FILE.py:NAME: recipe files write that in place of its slug."""
    version: ClassVar[int] = 1
    """Raised when the meaning of a knob or the numbers it produces change; written into recipe files."""
    keeps_base: ClassVar[bool] = False
    """Whether what it makes is stored as a delta: tensors that equal the base's are named, and the base is needed."""
    form_by_training: ClassVar[bool] = False
    """Whether its training decides the form of the result, not only the values in it: then only a run can tell it."""
    later_knobs: ClassVar[frozenset[str]] = frozenset()
    """Knobs that came after results were published; None, where they change nothing, is left out of a recipe's hash."""

    def prepare(self, task: Task, context: Context) -> Task:  # noqa: ARG002
        """Return what this step and later ones train and calibrate on: `task`, or a `task.view(...)` of it.

        The judge keeps its own data: a view whose validation or test split differs is refused by the recipe.
        """
        return task

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Return the model that this step makes; `model` is a private copy and may be changed.

        Raises:
            NothingMatchedError: nothing that `card.acts_on` names is eligible.
        """
        return model

    def forecast(self, model: nn.Module, task: Task, context: Context) -> Forecast | None:  # noqa: ARG002
        """Return what the step would leave of `model`, or None where nothing can be said without running it."""
        return None

    @classmethod
    def unused_knobs(cls, knobs: dict[str, Any]) -> frozenset[str]:
        """Return the knobs that came later and are not used: recipe files and hashes leave them out."""
        later = {name for parent in cls.__mro__ for name in vars(parent).get("later_knobs", ())}
        return frozenset(name for name in later if knobs.get(name) is None)

    @property
    def written(self) -> str:
        """What a recipe file calls this method: its slug, or where the user's own stands."""
        return self.origin or self.card.name

    def knobs(self) -> dict[str, Any]:
        """Return the knobs as JSON values, without those that came later and are not used."""
        values = self.model_dump(mode="json")
        unused = self.unused_knobs(values)
        return {name: value for name, value in values.items() if name not in unused}

    def nothing_matched(self, model: nn.Module, why: str = "") -> NothingMatchedError:
        """Build the error that says what was looked for and what the model holds instead."""
        present = sorted({type(module).__name__ for module in model.modules() if module is not model})
        found = ", ".join(present[:12]) or "no submodules"
        reason = f" ({why})" if why else ""
        return NothingMatchedError(
            f"{self.card.name} found nothing to act on: it looks for {self.card.looks_for}{reason}; "
            f"the model holds {found}"
        )


def check_needs(method: Method, task: Task) -> None:
    """Raise TaskError when `task` lacks something that `method` declared it needs."""
    given = capabilities(task)
    missing = sorted(method.card.needs - given)
    if missing:
        raise TaskError(
            f"{method.card.name} needs {', '.join(missing)}, which task {task.name!r} does not provide "
            f"(it provides {', '.join(sorted(given)) or 'nothing'})"
        )


def check_finite(model: nn.Module, where: str) -> None:
    """Raise NonFiniteError naming each floating-point parameter or buffer that holds NaN or infinity."""
    bad: list[str] = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            known = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch asks no float8 itself
            count = int((~torch.isfinite(known)).sum())
            if count:
                bad.append(f"{name} ({count} of {tensor.numel()} values)")
    if bad:
        raise NonFiniteError(f"NaN or infinity in {where}: {', '.join(bad[:5])}; repair or retrain before compressing")
