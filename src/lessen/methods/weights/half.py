"""16 bit linear layers: half the bytes, no data, no training."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import replace
from lessen.stored.linears.half import Half, HalfLinear
from lessen.task import Task

FP16_MAX = 65504.0


class HalfLinears(ModuleMethod):
    """Round linear layers to bf16 or fp16 and multiply in that type; the model answers in its own.

    Source: bfloat16 (Kalamkar et al. 2019, arXiv 1905.12322) and IEEE 754 binary16. The mildest entry on every
    frontier, and what the few-bit methods are compared with. A layer with values beyond 65504 is left alone under fp16.
    """

    card = Card(
        name="linear-half",
        family="weights",
        summary="Store linear layers in 16 bits.",
        acts_on=(nn.Linear,),
        source="Kalamkar et al. 2019, arXiv 1905.12322; IEEE 754-2008",
    )
    dtype: Half = Field("bf16", description="bf16: the range of fp32; fp16: three more bits of precision")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace each eligible layer. Raises NothingMatchedError."""
        for site in self.eligible(model, (nn.Linear,), context, self._reject, (HalfLinear,)):
            model = replace(model, site, HalfLinear.from_dense(site.module, self.dtype))
        return model

    def _reject(self, layer: Any) -> str | None:
        if layer.weight.element_size() <= 2:
            return f"holds {layer.weight.dtype} already"
        largest = max(float(p.detach().abs().max()) for p in layer.parameters())
        if self.dtype == "fp16" and largest > FP16_MAX:
            return "holds values beyond 65504, which fp16 cannot; use bf16"
        return None
