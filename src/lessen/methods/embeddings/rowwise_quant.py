"""Row-wise 8, 4 or 2 bit tables, looked up without ever being dequantised as a whole."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from lessen.method import Card, Context, Method
from lessen.methods.sites import TABLES, Site, find, replace, require, too_small
from lessen.stored import rowwise
from lessen.stored.quantized_embedding import QuantizedEmbedding
from lessen.task import Task


class RowwiseQuantTables(Method):
    """Give each row its own scale and bias and 8, 4 or 2 bit codes, in torch's layout and by torch's operators.

    Source: Guan et al., "Post-Training 4-bit Quantization on Embedding Tables" (arXiv 1911.02079); the exact rules
    are those of FBGEMM's reference quantisers. `ranges: auto` searches the range greedily for 2 bit rows only.
    Differences: a table whose rows overflow the fp16 parameters of 4 and 2 bit rows falls back to 8 bits; the
    paper's per-row codebooks, for which no kernel exists, are left out; one-column tables (first-order weights),
    tied weights and tables that would not shrink are left alone, each with its reason in the findings.
    """

    card = Card(
        name="emb-rowwise-quant",
        family="embeddings",
        summary="Quantise each table row to 8, 4 or 2 bits with its own scale and bias; no training.",
        acts_on=TABLES,
        source="Guan et al. 2019, arXiv 1911.02079",
        frees=frozenset({"bytes"}),
        tags=frozenset({"post-training", "tables"}),
    )
    bits: Literal[8, 4, 2] = Field(8, description="bits of each value")
    ranges: Literal["auto", "plain", "greedy"] = Field(
        "auto", description="row range: minimum to maximum, or narrowed while the row's error falls"
    )
    min_rows: int = Field(1000, ge=1, le=10**9, description="smaller tables stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace each eligible table. Raises NothingMatchedError."""
        for site in require(find(model, TABLES, context, self._reject), self, model, context):
            model = replace(model, site, self._quantise(site, context))
        return model

    def _quantise(self, site: Site, context: Context) -> QuantizedEmbedding:
        weight = site.module.weight.detach().float()
        bits: int = self.bits if rowwise.representable(weight, self.bits) else 8
        greedy = bits < 8 and (self.ranges == "greedy" or (self.ranges == "auto" and bits == 2))
        context.findings.setdefault("tables", {})[site.path] = {"bits": bits, "greedy": greedy}
        return QuantizedEmbedding.from_dense(site.module, bits, greedy)

    def _reject(self, table: Any) -> str | None:
        dim = table.embedding_dim
        if dim == 1:
            return "has one column (first-order weights)"
        if getattr(table, "mode", None) == "max":
            return "pools by max, for which no quantised operator exists"
        if rowwise.row_bytes(dim, self.bits) >= dim * table.weight.element_size():
            return f"{self.bits} bit rows of {dim} values take no fewer bytes than they do now"
        if not rowwise.representable(table.weight.detach().float(), 8):
            return "holds rows whose range overflows float32"
        return too_small(table, self.min_rows)
