"""16 bit weights: half the bytes, no data, no training."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import replace, require
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.token_tables import TokenTable, token_tables
from lessen.stored.linears.half import Half, HalfLinear
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.task import Task

FP16_MAX = 65504.0


class HalfLinears(ModuleMethod):
    """Round linear layers to bf16 or fp16 and multiply in that type; the model answers in its own.

    Source: bfloat16 (Kalamkar et al. 2019, arXiv 1905.12322) and IEEE 754 binary16. The mildest entry on every
    frontier, and what the few-bit methods are compared with. A Transformer's token embedding is rounded too, and a head
    that is tied to it holds the same 16 bits, stored once. A layer with values beyond 65504 is left alone under fp16.
    Norms and convolutions stay as they are.
    """

    card = Card(
        name="linear-half",
        family="weights",
        summary="Store linear layers and token embeddings in 16 bits.",
        acts_on=(nn.Linear,),
        source="Kalamkar et al. 2019, arXiv 1905.12322; IEEE 754-2008",
    )
    dtype: Half = Field("bf16", description="bf16: the range of fp32; fp16: three more bits of precision")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace each eligible layer. Raises NothingMatchedError."""
        model, done = linearised(model), False
        for found in token_tables(model, self.scope, context):
            reason = self._reject(found.stand_in())
            if reason is None:
                model, done = self._halve(model, found), True
            else:
                context.findings.setdefault("skipped", {})[found.table.path] = reason
        sites = self.candidates(model, (nn.Linear,), context, self._reject, (HalfLinear,))
        for site in sites if done else require(sites, self, model, context):
            model = replace(model, site, HalfLinear.from_dense(site.module, self.dtype))
        return model

    def _halve(self, model: nn.Module, found: TokenTable) -> nn.Module:
        made = HalfEmbedding.from_dense(found.table.module, self.dtype)
        for site in (found.table, *found.others):
            table = HalfEmbedding(TableShape.of(site.module), self.dtype)
            table.rows = made.rows
            model = replace(model, site, table)
        for site in found.heads:
            head = HalfLinear.from_dense(site.module, self.dtype)
            head.weight = made.rows
            model = replace(model, site, head)
        return model

    def _reject(self, layer: Any) -> str | None:
        if layer.weight.element_size() <= 2:
            return f"holds {layer.weight.dtype} already"
        largest = max(float(p.detach().abs().max()) for p in layer.parameters())
        if self.dtype == "fp16" and largest > FP16_MAX:
            return "holds values beyond 65504, which fp16 cannot; use bf16"
        return None
