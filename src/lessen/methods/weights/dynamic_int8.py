"""Dynamic int8 linear layers: int8 weights, activations quantised as they come, integer products."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import replace
from lessen.methods.weights._shared.conv1d import linearised
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.linears.scaled_input import ScaledInput
from lessen.task import Task

SMALLEST = 2.0**-24
"""Smallest number of fp16; that it is coarse there does no harm, weights are divided by the factor as it is held."""


class DynamicInt8Linears(ModuleMethod):
    """Store linear weights as int8 with a scale for each output and multiply int8 by int8; no data needed.

    Source: symmetric per-channel weights and dynamic activations, Krishnamoorthi 2018 (arXiv 1806.08342). Each example
    has by default its own activation scale: one scale for the batch is faster but lets an outlier in one example hurt
    the others (it multiplied a small language model's perplexity by three or more). Layers that attention reads
    directly, tied layers and small ones are left alone.

    An addition: one step an output and one an example cannot hold inputs of very different scales, as under a ridge
    head on raw features (LightWaveS). Each column's largest weight then becomes a factor on its input.
    """

    card = Card(
        name="linear-int8",
        family="weights",
        summary="Run linear layers in int8, activations quantised as they come.",
        acts_on=(nn.Linear,),
        source="Krishnamoorthi 2018, arXiv 1806.08342",
        claims=frozenset({"bytes"}),
    )
    activations: Literal["row", "tensor"] = Field("row", description="one activation scale an example, or a batch")
    min_weights: int = Field(1024, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace each eligible layer. Raises NothingMatchedError."""
        model = linearised(model)
        for site in self.eligible(model, (nn.Linear,), context, self._reject):
            uneven = lost_columns(site.module.weight) > LOST
            if uneven:
                context.findings.setdefault("equalised", []).append(site.path)
            make = equalised if uneven else Int8Linear.from_dense
            model = replace(model, site, make(site.module, self.activations))
        return model

    def _reject(self, layer: Any) -> str | None:
        if layer.weight.numel() < self.min_weights:
            return f"has {layer.weight.numel()} weights, fewer than min_weights {self.min_weights}"
        if layer.weight.element_size() < 4:
            return f"holds {layer.weight.dtype} and would answer in float32"
        return None


LOST = 0.1
"""Share of the columns that may be lost; layers of trained networks have none or next to none."""


@torch.no_grad()
def lost_columns(weight: Tensor) -> float:
    """Return the share of columns of a weight [out, in] that int8 with a scale an output cannot hold.

    A column is lost where each of its weights is under a step and a half of its output. Columns of zeros do not count.
    """
    size = weight.detach().float().abs()
    steps = (size / (size.amax(1, keepdim=True) / 127).clamp_min(1e-30)).amax(0)
    used = steps > 0
    return float((steps[used] < 1.5).float().mean()) if bool(used.any()) else 0.0


@torch.no_grad()
def equalised(layer: nn.Linear, activations: str) -> ScaledInput:
    """Return an int8 layer behind factors on its inputs, so that the largest weight of every column is alike."""
    largest = layer.weight.detach().float().abs().amax(0)
    factors = (largest / largest.amax()).clamp_min(SMALLEST).half()
    plain = copy.deepcopy(layer)
    plain.weight.div_(factors)
    made = ScaledInput.around(plain, factors)
    made.layer = Int8Linear.from_dense(plain, activations)
    return made
