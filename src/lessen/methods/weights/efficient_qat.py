"""EfficientQAT: the scales and minimums of rounded layers trained end to end, their codes kept."""

from __future__ import annotations

import copy

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.sites import Site
from lessen.methods.weights._shared.grid_training import train_grids
from lessen.methods.weights.gptq import GPTQ
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.task import Task


class EfficientQAT(GPTQ):
    """Round as `gptq` does, then train the scales and minimums of all layers at once towards the original's answers.

    Source: Chen et al., "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models", ACL 2025
    (arXiv 2407.11062), its second part (E2E-QP). Codes stay where rounding put them, so that what trains is two numbers
    a group: memory for gradients and moments is a few per cent of the model's, and the stored form, its bytes and its
    speed are those of `gptq`.
    Differs from the paper: codes come from GPTQ's error feedback with all knobs of `gptq`, in place of a block by block
    training of weights (Block-AP); the loss is the divergence of the model's answers from those of the model before
    the recipe's first step, in place of the next token's own loss, so that no text is learned that the original does
    not know; minimums train as well as scales; moves are measured in steps of the grid, with one rate for all layers.
    A token embedding and a head over its rows stay as they were rounded.
    """

    card = Card(
        name="efficient-qat",
        family="weights",
        summary="Round linear weights as gptq does, then train scales and minimums towards the original's answers.",
        acts_on=(nn.Linear,),
        source="Chen et al. 2025, arXiv 2407.11062; rounding: Frantar et al. 2023, arXiv 2210.17323",
        needs=frozenset({"calibration", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    version = 1
    steps: int = Field(64, ge=1, le=10**6, description="training steps of scales and minimums")
    accumulate: int = Field(1, ge=1, le=4096, description="batches of one step")
    learning_rate: float = Field(
        2e-3, gt=0, le=1, description="of Adam, in steps of the grid, falling by a cosine to 0"
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Round and train. Raises NothingMatchedError; TaskError for an empty train split or other answers."""
        original = context.original if context.original is not None else copy.deepcopy(model)
        before = {id(m) for m in model.modules() if isinstance(m, GroupQuantizedLinear)}
        model = super().apply(model, task, context)
        paths: dict[GroupQuantizedLinear, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, GroupQuantizedLinear) and id(module) not in before:
                paths.setdefault(module, []).append(path)
        rounded = context.findings.get("layers", {})  # a head reads its table's codes, and is none of these
        sites = [Site(tuple(own), module) for module, own in paths.items() if own[0] in rounded]
        if not sites or context.form_only:
            return model
        return train_grids(model, sites, original.eval(), task, context, self)
