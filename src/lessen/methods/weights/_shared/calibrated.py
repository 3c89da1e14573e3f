"""What methods share that round linear layers under a curvature: where it comes from, and the way through the model."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from lessen.architectures.parts import Stack
from lessen.architectures.stacks import find_stacks
from lessen.capabilities import capabilities
from lessen.errors import NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.blockwise import Step, walk
from lessen.methods.calibration import run_through
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, replace, require
from lessen.methods.weights._shared.curvature import (
    Curvature,
    Hessian,
    curvatures,
    ending_early,
    output_curvatures,
    sharing,
)
from lessen.methods.weights._shared.error_feedback import Feedback, feedback, output_error
from lessen.methods.weights._shared.slopes import backward_through_all, backward_through_blocks, without_parameters
from lessen.stored.base import StoredModule
from lessen.task import Task

BLOCKS_A_PASS = 4
"""Blocks whose output curvature is held at a time, unless the user says another number."""


class Calibrated(ModuleMethod):
    """Base of methods that round linear layers under the curvature that calibration shows.

    `hessian=input`: blocks in order, each on the outputs of those that are rounded already; within a block layers in
    the order of their calls with `true_sequential`, layers that read one tensor together. `hessian=output` (OAC) and
    `tokens`: the loss of the task is sent backward, a few blocks' curvatures at a time, those before them rounded
    already; every layer has a curvature of its own. Layers outside the blocks stay. A model without blocks takes one
    pass.
    """

    calibration_batches: int = Field(32, ge=1, le=10**6, description="train batches to calibrate on")
    hessian: Hessian = Field(
        "input", description="input: squared outputs of a layer; output: the task's loss (OAC); tokens: the loss, its "
        "tokens as if they were independent, which is faster"
    )  # fmt: skip
    damping: float | None = Field(
        None, ge=1e-4, le=10, description="share of the mean curvature added to every input's; none: the method's own"
    )
    true_sequential: bool | None = Field(
        None, description="layers of a block see those before them rounded; none: yes with hessian=input"
    )
    blocks_a_pass: int | None = Field(
        None, ge=1, le=10**4, description="hessian=output: blocks for each pass over the batches; more is faster, "
        "and holds more curvatures; none: 4"
    )  # fmt: skip

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.by_loss and self.true_sequential:
            raise ValueError("true_sequential needs hessian=input: one backward pass shows all layers of its blocks")
        if not self.by_loss and self.blocks_a_pass is not None:
            raise ValueError("blocks_a_pass needs hessian=output or tokens: input curvatures are taken block by block")
        return self

    @abstractmethod
    def rounded(self, site: Site, spread: Feedback, context: Context) -> StoredModule:
        """Return the stored form of a layer, its errors spread by `spread`, and record what it cost."""

    def form(self, site: Site) -> StoredModule | None:  # noqa: ARG002
        """Return the stored form of a layer, its values of no account; None where the curvature decides the form."""
        return None

    @property
    def damping_used(self) -> float:
        """The share of the mean curvature that is added: 0.01; 0.1 for the fewer and rank-poorer gradients of OAC."""
        return self.damping if self.damping is not None else 0.1 if self.by_loss else 0.01

    @property
    def by_loss(self) -> bool:
        """Whether the task's loss is sent backward."""
        return self.hessian != "input"

    @property
    def by_curvature(self) -> bool:
        """Whether inputs are done in falling order of curvature."""
        return False

    def calibrate(self, model: nn.Module, sites: list[Site], task: Task, context: Context) -> nn.Module:
        """Replace the layers at `sites`. Raises NothingMatchedError; TaskError; NonFiniteError; InputError."""
        if self.by_loss and "gradients" not in capabilities(task):
            raise TaskError(
                f"{self.card.name}: hessian={self.hessian} needs a loss to differentiate, and task {task.name!r} "
                "provides no gradients; take hessian=input or a task of labelled examples"
            )
        try:
            stacks = find_stacks(model)
        except NothingMatchedError:
            return self._formed(model, sites, context) or self._whole(model, sites, task, context)
        blocks = [block for stack in stacks for block in stack.blocks]
        inside = {block.path: [s for s in sites if s.path.startswith(f"{block.path}.")] for block in blocks}
        known = {site.path for members in inside.values() for site in members}
        for site in sites:
            if site.path not in known:
                context.findings.setdefault("skipped", {})[site.path] = "is outside the Transformer blocks"
        taken = require([site for site in sites if site.path in known], self, model, context)
        formed = self._formed(model, taken, context)
        if formed is not None:
            return formed
        batches = self._batches(task)
        if self.by_loss:
            self._by_slopes(model, stacks, inside, task, batches, context)
        else:
            self._by_inputs(model, stacks, inside, task, batches, context)
        return model

    def _formed(self, model: nn.Module, sites: list[Site], context: Context) -> nn.Module | None:
        """Replace the layers without a look at data where only their form is asked for and data do not decide it."""
        for site in sites:
            made = self.form(site) if context.form_only else None
            if made is None:
                return None
            model = replace(model, site, made)
        return model

    def _batches(self, task: Task) -> list[Any]:
        batches = list(itertools.islice(task.batches("train"), self.calibration_batches))
        if not batches:
            raise TaskError(f"task {task.name!r} has an empty train split: no calibration batches")
        return batches

    def _by_inputs(
        self, model: nn.Module, stacks: Sequence[Stack], inside: dict[str, list[Site]], task: Task,
        batches: list[Any], context: Context,
    ) -> None:  # fmt: skip
        walked = walk(model, stacks, batches, lambda batch: task.forward(model, batch))
        total = len(inside)
        for number, step in enumerate(walked):
            context.log.progress(f"{self.card.name} block by block", number, total)
            sites = inside.pop(step.block.path)
            if sites:
                self._block(model, step, sites, context)
            if not any(inside.values()):
                break  # what later blocks would see is nobody's business

    def _block(self, model: nn.Module, step: Step, sites: list[Site], context: Context) -> None:
        again: set[str] = set()
        sets = sharing(sites, lambda: step.run(0), again)
        calls = [partial(step.run, number) for number in range(len(step.calls))]
        sequential = self.true_sequential is not False
        for turn in [[members] for members in sets] if sequential else [sets]:
            once = not any(members[0].path in again for members in turn)
            found = curvatures(turn, ending_early(turn, calls) if once else lambda: [call() for call in calls])
            for members in turn:
                self._replace(model, members, found.pop(0), context)

    def _by_slopes(
        self, model: nn.Module, stacks: Sequence[Stack], inside: dict[str, list[Site]], task: Task,
        batches: list[Any], context: Context,
    ) -> None:  # fmt: skip
        blocks = stacks[0].blocks if len(stacks) == 1 else None  # several stacks feed one another: no single way back

        for first, sites in _spans(inside, self.blocks_a_pass or BLOCKS_A_PASS):

            def backward(batch: Any, first: int = first, sites: list[Site] = sites) -> None:
                if blocks is None:
                    backward_through_all(model, task, batch, sites)
                else:
                    backward_through_blocks(model, task, batch, blocks, first)

            found = self._slopes(model, sites, batches, backward, context)
            for site in sites:
                self._replace(model, [site], found.pop(0), context)

    def _slopes(
        self, model: nn.Module, sites: list[Site], batches: list[Any], backward: Callable[[Any], None],
        context: Context,
    ) -> list[Curvature]:  # fmt: skip
        def run() -> None:
            for number, batch in enumerate(batches):
                context.log.progress(f"{self.card.name} gradients from {sites[0].path} on", number, len(batches))
                backward(batch)

        with without_parameters(model):
            return output_curvatures(sites, run, apart=self.hessian == "tokens")

    def _whole(self, model: nn.Module, sites: list[Site], task: Task, context: Context) -> nn.Module:
        if self.by_loss:
            found = self._slopes(
                model, sites, self._batches(task), lambda b: backward_through_all(model, task, b, sites), context
            )
        else:
            alone = [[site] for site in sites]
            found = curvatures(alone, lambda: run_through(model, task, self.calibration_batches))
        for site in sites:
            model = self._replace(model, [site], found.pop(0), context)
        return model

    def _replace(self, model: nn.Module, sites: Sequence[Site], curvature: Curvature, context: Context) -> nn.Module:
        """Replace layers that share a curvature."""
        if not bool(curvature.total.diagonal().any()):
            context.findings.setdefault("not_calibrated", []).extend(site.path for site in sites)
        spread = feedback(curvature.total, self.damping_used, self.by_curvature)
        for site in sites:
            made = self.rounded(site, spread, context)
            weight = site.module.weight.detach().float()
            power = output_error(weight, curvature.total)
            error = output_error(made.dequantise().to(weight.device) - weight, curvature.total)
            context.findings.setdefault("outputs", {})[site.path] = round(error / power, 8) if power > 0 else 0.0
            model = replace(model, site, made)
            _forget(site.module)
        return model


def _spans(inside: dict[str, list[Site]], size: int) -> Iterator[tuple[int, list[Site]]]:
    """Yield (number of the first block, layers) of each run of at most `size` blocks that hold layers to round."""
    held = [(number, sites) for number, sites in enumerate(inside.values()) if sites]
    for start in range(0, len(held), size):
        part = held[start : start + size]
        yield part[0][0], [site for _, sites in part for site in sites]


def _forget(layer: nn.Module) -> None:
    """Give a replaced layer's memory back, though blocks and sites still name it."""
    layer.to_empty(device=torch.device("meta"))
