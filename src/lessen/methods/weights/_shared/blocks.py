"""Calibrated methods go through a Transformer block by block: which layers each block holds, and a run of one block."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.parts import Block, Stack
from lessen.architectures.stacks import find_stacks
from lessen.errors import NothingMatchedError
from lessen.method import Context
from lessen.methods.blockwise import Step, walk
from lessen.methods.sites import Site
from lessen.task import Task


@dataclass(frozen=True)
class Turn:
    """One block whose turn it is, the layers in it, and its runs on what calibration brings."""

    block: Block
    sites: list[Site]
    step: Step

    def once(self) -> Any:
        """Run the block on the first batch."""
        return self.step.run(0)

    def all(self) -> None:
        """Run the block on every batch."""
        for number in range(len(self.step.calls)):
            self.step.run(number)

    @torch.no_grad()
    def answer(self) -> Tensor:
        """Run the block on the first batch and return its hidden states."""
        output = self.once()
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        return hidden


def stacks_of(model: nn.Module) -> list[Stack]:
    """Return the stacks of a model, or none where it is no Transformer."""
    try:
        return find_stacks(model)
    except NothingMatchedError:
        return []


def inside(stacks: Sequence[Stack], sites: Sequence[Site], context: Context) -> list[Site]:
    """Return the sites that lie in a block; others go to `context.findings["skipped"]`."""
    paths = [block.path for stack in stacks for block in stack.blocks]
    kept = [site for site in sites if any(site.path.startswith(f"{path}.") for path in paths)]
    for site in sites:
        if site not in kept:
            context.findings.setdefault("skipped", {})[site.path] = "is outside the Transformer blocks"
    return kept


def turns(
    model: nn.Module, stacks: Sequence[Stack], sites: Sequence[Site], task: Task, batches: int, log: Callable[..., Any]
) -> Iterator[Turn]:
    """Yield the blocks that hold a site, in the order of calls, on the outputs of those before as they are then.

    Raises:
        TaskError: the train split is empty.
    """
    count = sum(len(stack.blocks) for stack in stacks)
    given = list(itertools.islice(task.batches("train"), batches))
    for number, step in enumerate(walk(model, stacks, given, lambda batch: task.forward(model, batch))):
        log("block by block", number, count)
        own = [site for site in sites if site.path.startswith(f"{step.block.path}.")]
        if own:
            yield Turn(step.block, own, step)
