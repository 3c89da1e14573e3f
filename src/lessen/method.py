"""The Method contract: one technique as a frozen, typed object whose fields are its knobs.

class KeepHalf(Method):
    card = Card(name="keep-half", family="weights", acts_on=(nn.Linear,), ...)
    share: float = Field(0.5, gt=0, le=1, description="share of columns kept")

    def apply(self, model, task, context): ...
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from lessen.errors import NonFiniteError, NothingMatchedError, TaskError
from lessen.log import SILENT, Log
from lessen.task import Task

Family = Literal[
    "features", "embeddings", "weights", "tokens", "attention", "decoding", "checkpoints", "retrieval", "codecs",
    "distil", "adapt",
]  # fmt: skip
Need = Literal["labels", "gradients", "training", "calibration", "teacher"]


@dataclass(frozen=True)
class Card:
    """What a method is, for the catalogue, the report and the checks made before it runs."""

    name: str
    """Slug used in YAML and on the command line, such as `emb-rowwise-quant`."""
    family: Family
    summary: str
    """One sentence: what gets smaller, and how."""
    acts_on: tuple[type[nn.Module], ...]
    """Module types it looks for; none present is an error, not a silent no-op."""
    source: str
    """Paper and arXiv id, or the code the rule was taken from."""
    needs: frozenset[Need] = frozenset()
    """What the task must provide; checked by name before the method runs."""
    frees: frozenset[Literal["bytes", "macs", "latency"]] = frozenset({"bytes"})
    """What it claims to save; the report flags a claim that the measurement does not bear out."""
    tags: frozenset[str] = frozenset()


@dataclass
class Context:
    """Handed to `Method.apply`: the only source of randomness, a log, and a place to record findings."""

    seed: int = 0
    log: Log = SILENT
    findings: dict[str, Any] = field(default_factory=dict)
    """What the step learned (chosen ranks, skipped tables): JSON values, kept in the step ledger."""
    generator: torch.Generator = field(init=False)
    train_seconds: float = 0.0
    """Seconds spent in gradient training inside this step; the rest counts as compression."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)


class Method(BaseModel):
    """One compression technique. Subclasses add knobs as fields and implement `apply`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    card: ClassVar[Card]
    version: ClassVar[int] = 1
    """Raised when the meaning of a knob or the numbers it produces change."""
    later_knobs: ClassVar[frozenset[str]] = frozenset()
    """Knobs that came after results were published; None, where they change nothing, is left out of a recipe's hash."""

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Return a smaller model; `model` is a private copy and may be changed.

        Raises:
            NothingMatchedError: no module of the types in `card.acts_on` is eligible.
        """
        raise NotImplementedError(f"{type(self).__name__}.apply")

    def nothing_matched(self, model: nn.Module, why: str = "") -> NothingMatchedError:
        """Build the error that says what was looked for and what the model holds instead."""
        looked_for = ", ".join(sorted({kind.__name__ for kind in self.card.acts_on}))
        present = sorted({type(module).__name__ for module in model.modules() if module is not model})
        found = ", ".join(present[:12]) or "no submodules"
        reason = f" ({why})" if why else ""
        return NothingMatchedError(
            f"{self.card.name} found nothing to act on: it looks for {looked_for}{reason}; the model holds {found}"
        )


def check_needs(method: Method, task: Task) -> None:
    """Raise TaskError when `task` lacks something that `method` declared it needs."""
    missing = sorted(set(method.card.needs) - set(task.provides))
    if missing:
        raise TaskError(
            f"{method.card.name} needs {', '.join(missing)}, which task {task.name!r} does not provide "
            f"(it provides {', '.join(sorted(task.provides)) or 'nothing'})"
        )


def check_finite(model: nn.Module, where: str) -> None:
    """Raise NonFiniteError naming each floating-point parameter or buffer that holds NaN or infinity."""
    bad: list[str] = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            count = int((~torch.isfinite(tensor)).sum())
            if count:
                bad.append(f"{name} ({count} of {tensor.numel()} values)")
    if bad:
        raise NonFiniteError(f"NaN or infinity in {where}: {', '.join(bad[:5])}; repair or retrain before compressing")
