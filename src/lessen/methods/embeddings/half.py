"""16 bit tables: half the bytes, no training, no calibration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import check_share, share_field, table_bytes
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, replace, too_small
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.rowwise import HALF_MAX
from lessen.task import Task


class HalfTables(ModuleMethod):
    """Round tables to fp16 or bf16; lookups answer in float32.

    Source: IEEE 754 binary16 and bfloat16, the mildest entry of the VLDB 2024 study (arXiv 2311.15578). A table
    with values beyond 65504 is left alone under fp16.
    """

    card = Card(
        name="emb-half",
        family="embeddings",
        summary="Store embedding tables in 16 bits.",
        acts_on=TABLES,
        source="IEEE 754-2008 binary16; arXiv 2311.15578",
        claims=frozenset({"bytes"}),
    )
    later_knobs = frozenset({"share"})
    share: float | None = share_field("nothing: 16 bits take half, so that other shares are refused")
    dtype: Literal["fp16", "bf16"] = Field("fp16", description="fp16: 11 bits of precision; bf16: 8, range of fp32")
    min_rows: int = Field(1, ge=1, le=10**9, description="smaller tables stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace each eligible table. Raises NothingMatchedError; BudgetError: a share that 16 bits do not take."""
        before = table_bytes(model)
        for site in self.eligible(model, TABLES, context, self._reject):
            model = replace(model, site, HalfEmbedding.from_dense(site.module, self.dtype))
        if self.share is not None:
            context.findings["share"] = round(check_share(table_bytes(model), before, self.share, self.card.name), 5)
        return model

    def _reject(self, table: Any) -> str | None:
        if table.weight.element_size() <= 2:
            return f"holds {table.weight.dtype} already"
        if self.dtype == "fp16" and float(table.weight.detach().abs().max()) > HALF_MAX:
            return "holds values beyond 65504, which fp16 cannot; use bf16"
        return too_small(table, self.min_rows)
