"""Static int8: weights a scale for each output channel, inputs on a range that calibration fixes, convolutions too."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import module_bytes, replace
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.folded_norms import fold_batch_norms
from lessen.methods.weights._shared.ranges import InputRanges, input_ranges
from lessen.stored.linears.static_int8 import LAYERS, StaticInt8, StaticInt8Conv, StaticInt8Linear
from lessen.task import Task

KINDS: tuple[type[nn.Module], ...] = (nn.Linear, *LAYERS)


class StaticInt8Layers(ModuleMethod):
    """Round weights and inputs of linear layers and convolutions to int8, input ranges fixed by calibration.

    Source: Jacob et al. 2018 (arXiv 1712.05877) and Krishnamoorthi 2018 (arXiv 1806.08342): weights symmetric, a scale
    for each output channel; inputs asymmetric, one step and zero for all. Batch norms are folded first.
    Differs from the papers: outputs are not rounded, what lies between two layers (additions, activations, softmax)
    stays float, and biases stay float32. Linear layers multiply integers; convolutions decode theirs to compute.
    """

    card = Card(
        name="int8-static",
        family="weights",
        summary="Run linear layers and convolutions on int8 weights and inputs of calibrated ranges.",
        acts_on=KINDS,
        source="Krishnamoorthi 2018, arXiv 1806.08342",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    weights: Literal["channel", "tensor"] = Field("channel", description="a scale for each output channel, or for all")
    ranges: InputRanges = Field("minmax", description="range of inputs: all, without rare ends, or by least error")
    percentile: float = Field(
        99.99, gt=50, le=100, description="inputs, in %, that percentile ranges hold at either end"
    )
    calibration_batches: int = Field(16, ge=1, le=10**6, description="train batches to take ranges from")
    fold_norms: bool = Field(True, description="multiply batch norms into the convolutions before them first")
    min_weights: int = Field(64, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        model = linearised(model)
        self.eligible(model, KINDS, Context(), self._reject)  # refuse before anything runs
        if self.fold_norms:
            model, folded = fold_batch_norms(model.eval(), task)
            context.findings["folded_norms"] = len(folded)
        sites = self.eligible(model, KINDS, context, self._reject)
        found = input_ranges(model, task, sites, self.calibration_batches, self.ranges, self.percentile)
        for site, ends in zip(sites, found, strict=True):
            if ends is None:
                context.findings.setdefault("skipped", {})[site.path] = "calibration ran nothing through it"
                continue
            made = empty_form(site.module)
            made.fill(site.module, self.weights == "channel", *ends)
            context.findings.setdefault("ranges", {})[site.path] = [float(f"{end:.6g}") for end in ends]
            model = replace(model, site, made)
        return model

    def _reject(self, layer: Any) -> str | None:
        return unfit(layer, self.min_weights)


def unfit(layer: Any, min_weights: int) -> str | None:
    """Return why a linear layer or a convolution gets no int8 form, or None."""
    if layer.weight.numel() < min_weights:
        return f"has {layer.weight.numel()} weights, fewer than min_weights {min_weights}"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"pads with {layer.padding_mode}, not with zeros"
    if module_bytes(layer) <= layer.weight.numel() + 4 * len(layer.weight) * (1 + (layer.bias is not None)) + 8:
        return "int8 codes with their scales take no fewer bytes than it does now"
    return None


def empty_form(layer: Any) -> StaticInt8:
    """Return the empty int8 form of a linear layer or a convolution, on its device."""
    if not isinstance(layer, nn.Linear):
        return StaticInt8Conv.like(layer)
    made = StaticInt8Linear(layer.in_features, layer.out_features, layer.bias is not None)
    return made.to(layer.weight.device)
