"""Row deduplication: rows whose packed bytes are equal are stored once."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, Site, module_bytes, replace, require, too_small
from lessen.stored.tables import rowwise
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.task import Task


class DedupRows(ModuleMethod):
    """Quantise rows, keep one copy of each distinct packed row, and map ids to it (int32, counted).

    Lossless relative to the quantised table, and to the table itself at 32 bits. It pays where more than 4 bytes in a
    row's bytes repeat: never-trained rows, zero rows after value pruning, merged versions of one model.
    Source: the row-level form of block deduplication, PVLDB 15(10) 2022 (arXiv 2201.10442). Difference: the paper's
    blocks of thousands of values found by locality-sensitive hashing, which hardly repeat inside one table, are left
    out.
    """

    card = Card(
        name="emb-dedup",
        family="embeddings",
        summary="Store table rows that are equal, or equal once quantised, only once.",
        acts_on=TABLES,
        source="PVLDB 15(10) 2022, arXiv 2201.10442",
        claims=frozenset({"bytes"}),
    )
    bits: Literal[32, 8, 4, 2] = Field(8, description="bits of each value before rows are compared; 32: as they are")
    min_rows: int = Field(200, ge=2, le=10**9, description="smaller tables stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace each table that gets smaller. Raises NothingMatchedError."""
        replaced = []
        for site in self.eligible(model, TABLES, context, self._reject, (PrunedEmbedding,)):
            made = self._merge(site, context)
            if made is not None:
                model = replace(model, site, made)
                replaced.append(site)
        require(replaced, self, model, context)
        return model

    def _reject(self, table: Any) -> str | None:
        if self.bits < 32 and not rowwise.representable(table.weight.detach().float(), self.bits):
            return f"holds rows that {self.bits} bit parameters cannot describe"
        return too_small(table, self.min_rows)

    def _merge(self, site: Site, context: Context) -> PrunedEmbedding | None:
        shape, weight = TableShape.of(site.module), site.module.weight.detach().float()
        ranges: rowwise.Ranges = "greedy" if self.bits == 2 else "plain"
        packed = rowwise.pack(weight, self.bits, ranges) if self.bits < 32 else as_bytes(weight)
        distinct, position = torch.unique(packed, dim=0, return_inverse=True)
        before, after = module_bytes(site.module), distinct.numel() + 4 * shape.rows
        if after >= before or len(distinct) == shape.rows:
            why = f"{len(distinct)} of {shape.rows} rows are distinct: it would take {after} bytes instead of {before}"
            context.findings.setdefault("skipped", {})[site.path] = why
            return None
        context.findings.setdefault("tables", {})[site.path] = {"distinct": len(distinct), "of": shape.rows}
        made = PrunedEmbedding(shape, len(distinct))
        made.position.copy_(position)
        if self.bits == 32:
            rows = distinct.view(torch.float32)
            return PrunedEmbedding.from_dense(shape, rows, made.position)
        inner = QuantizedEmbedding(TableShape(len(distinct), shape.dim), self.bits)
        inner.packed.copy_(distinct)
        made.table = inner
        return made


def as_bytes(weight: Tensor) -> Tensor:
    """Return the bytes of float32 rows [rows, dim], uint8 [rows, 4 * dim]."""
    return weight.contiguous().view(torch.uint8)
