"""GPTQ: few-bit linear layers whose rounding errors are made good on calibration data, block by block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import nn

from lessen.architectures.parts import Stack
from lessen.architectures.stacks import find_stacks
from lessen.errors import NothingMatchedError
from lessen.method import Card, Context
from lessen.methods.blockwise import Step, walk
from lessen.methods.calibration import run_through
from lessen.methods.sites import Site, replace, require
from lessen.methods.weights._shared.curvature import Curvature, curvatures, sharing
from lessen.methods.weights._shared.error_feedback import feedback, output_error, round_with_feedback
from lessen.methods.weights._shared.few_bits import FewBits
from lessen.methods.weights._shared.grids import fit_grid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.task import Task


class GPTQ(FewBits):
    """Round the weights of one input after another and let those that are left make the error good.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR
    2023 (arXiv 2210.17323). Blocks are done in order, on the outputs of those that are quantised already. Within a
    block `true_sequential` does layers in the order in which they are called, those that read one tensor (queries, keys
    and values; gate and up) together; without it all see the inputs of the block as it was.
    Differences: group grids are always static (fitted to the original weights), so that order never has to be stored;
    grids are those of `rtn`; the curvature is a mean over tokens in place of sequences, which scales it and changes
    nothing; weights of inputs that calibration never excites are rounded to nearest, not set to zero; what reads one
    tensor is found by running the block, for any host. Layers outside the blocks (embeddings, head) stay as they are.
    A model without Transformer blocks is calibrated in one pass of the model as it was.
    """

    card = Card(
        name="gptq",
        family="weights",
        summary="Round linear weights to 2 to 8 bits, each error made good by the weights still to come.",
        acts_on=(nn.Linear,),
        source="Frantar et al. 2023, arXiv 2210.17323",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    calibration_batches: int = Field(32, ge=1, le=10**6, description="train batches to take inputs from")
    damping: float = Field(0.01, ge=1e-4, le=10, description="share of the mean curvature added to every input's")
    act_order: bool = Field(True, description="inputs in falling order of curvature, in place of their own")
    true_sequential: bool = Field(True, description="layers of a block see those before them quantised")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        sites = self.eligible(model, (nn.Linear,), context, self.reject)
        try:
            stacks = find_stacks(model)
        except NothingMatchedError:
            stacks = []
        model = (
            self._blocks(model, stacks, sites, task, context) if stacks else self._whole(model, sites, task, context)
        )
        self.remark(context)
        return model

    def _blocks(
        self, model: nn.Module, stacks: Sequence[Stack], sites: list[Site], task: Task, context: Context
    ) -> nn.Module:
        blocks = [block for stack in stacks for block in stack.blocks]
        inside = {block.path: [s for s in sites if s.path.startswith(f"{block.path}.")] for block in blocks}
        known = {site.path for members in inside.values() for site in members}
        for site in sites:
            if site.path not in known:
                context.findings.setdefault("skipped", {})[site.path] = "is outside the Transformer blocks"
        require([site for site in sites if site.path in known], self, model, context)
        batches = list(itertools.islice(task.batches("train"), self.calibration_batches))
        for number, step in enumerate(walk(model, stacks, batches, lambda batch: task.forward(model, batch))):
            context.log.progress("GPTQ block by block", number, len(blocks))
            if inside[step.block.path]:
                self._block(model, step, inside[step.block.path], context)
        return model

    def _block(self, model: nn.Module, step: Step, sites: list[Site], context: Context) -> None:
        sets = sharing(sites, lambda: step.run(0))
        for turn in [[members] for members in sets] if self.true_sequential else [sets]:
            found = curvatures(turn, lambda: [step.run(number) for number in range(len(step.calls))])
            for members, curvature in zip(turn, found, strict=True):
                self._replace(model, members, curvature, context)

    def _whole(self, model: nn.Module, sites: list[Site], task: Task, context: Context) -> nn.Module:
        alone = [[site] for site in sites]
        found = curvatures(alone, lambda: run_through(model, task, self.calibration_batches))
        for members, curvature in zip(alone, found, strict=True):
            model = self._replace(model, members, curvature, context)
        return model

    def _replace(self, model: nn.Module, sites: Sequence[Site], curvature: Curvature, context: Context) -> nn.Module:
        """Replace layers that read the same inputs."""
        if not curvature.rows:
            context.findings.setdefault("not_calibrated", []).extend(site.path for site in sites)
        mean = curvature.mean
        spread = feedback(mean, self.damping, self.act_order)
        for site in sites:
            layer: Any = site.module
            grid = fit_grid(layer.weight, self.bits, self.width(layer), self.symmetric, self.ranges)
            made = GroupQuantizedLinear.from_codes(layer, grid, round_with_feedback(layer.weight, grid, spread))
            self.record(site, made, context)
            weight = layer.weight.detach().float()
            power = output_error(weight, mean)
            error = output_error(made.dequantise() - weight, mean)
            context.findings.setdefault("outputs", {})[site.path] = round(error / power, 8) if power > 0 else 0.0
            model = replace(model, site, made)
        return model
