"""What decides the order of things to try: where the bytes of a model are, what its task gives, what runs here."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lessen.architectures.stacks import find_stacks
from lessen.capabilities import capabilities
from lessen.errors import LessenError
from lessen.measure.record import count_macs
from lessen.methods.sites import module_bytes, state_bytes
from lessen.stored.kernels import machine as kernels
from lessen.stored.tables.embedding import StoredEmbedding
from lessen.task import Task

TABLES = (nn.Embedding, nn.EmbeddingBag, StoredEmbedding)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MATTERS = 0.02
"""Share of a model's bytes from which a part is worth a method of its own."""
BOUND = 16.0
"""Multiply-adds for each weight and call below which fetching weights takes the time, not multiplying."""


@dataclass(frozen=True)
class Situation:
    """The facts that rules ask for."""

    bytes: int
    tables: float
    """Share of the bytes in tables of rows."""
    linears: float
    convolutions: float
    blocks: int
    """Transformer blocks."""
    macs: int | None
    """Multiply-adds of one example."""
    reuse: float
    """Multiply-adds of a call for each weight outside tables."""
    gives: frozenset[str]
    """Capabilities of the task."""
    kernels: bool
    """Whether few-bit forms have compiled kernels here."""

    @property
    def trains(self) -> bool:
        """Whether the task can train a model."""
        return {"training", "gradients", "labels"} <= self.gives

    @property
    def memory_bound(self) -> bool:
        """Whether a call spends its time on fetching weights."""
        return self.reuse < BOUND

    def told(self) -> str:
        """Return the facts in a line."""
        parts = [("tables", self.tables), ("linear layers", self.linears), ("convolutions", self.convolutions)]
        where = ", ".join(f"{100 * share:.0f} % in {name}" for name, share in parts if share >= 0.005)
        blocks = f"{self.blocks} Transformer blocks; " if self.blocks else ""
        data = (
            "labels and training" if self.trains else "calibration only" if "calibration" in self.gives else "no data"
        )
        bound = "fetching weights" if self.memory_bound else "multiplying"
        there = f"{self.bytes:,} bytes: {where or 'none in known layers'}"
        return f"{there}; {blocks}the task gives {data}; a call is bound by {bound}"


def situation_of(model: nn.Module, task: Task) -> Situation:
    """Return the facts about a model and its task; one forward counts multiply-adds."""
    whole = max(1, state_bytes(model))
    macs = count_macs(task, model)
    units = max(1, task.units_in(task.example_batch()))
    rows = _bytes(model, TABLES)
    weights = max(1, (whole - rows) // 4)
    return Situation(
        state_bytes(model),
        rows / whole,
        _bytes(model, (nn.Linear,)) / whole,
        _bytes(model, CONVOLUTIONS) / whole,
        _blocks(model),
        macs,
        (macs or 0) * units / weights,
        capabilities(task),
        kernels.available(),
    )


def _bytes(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    return sum(module_bytes(module) for module in model.modules() if isinstance(module, kinds))


def _blocks(model: nn.Module) -> int:
    try:
        return sum(len(stack.blocks) for stack in find_stacks(model))
    except LessenError:
        return 0
