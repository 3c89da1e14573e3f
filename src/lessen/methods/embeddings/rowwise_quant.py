"""Row-wise 8, 4 or 2 bit tables, looked up without ever being dequantised as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from lessen.capabilities import capabilities
from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods.calibration import count_ids
from lessen.methods.embeddings._shared.budget import TOLERANCE, check_share, share_field, table_bytes
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, Site, module_bytes, replace, too_small
from lessen.stored.tables import rowwise
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.task import Task


class RowwiseQuantTables(ModuleMethod):
    """Give each row its own scale and bias and 8, 4 or 2 bit codes, in torch's layout and by torch's operators.

    Source: Guan et al., "Post-Training 4-bit Quantization on Embedding Tables" (arXiv 1911.02079); the exact rules
    are those of FBGEMM's reference quantisers. `ranges: greedy` is the paper's search of a row's range; `least` looks
    for the least squared error from many starts (`stored.tables.row_ranges`), which is faster and better; `auto` is
    what results were published with before: greedy for 2 bit rows, plain for the others.
    Each table gets its own bits where `share` is given, so that the error of looked-up rows is least.
    Differences: a table whose rows overflow the fp16 parameters of 4 and 2 bit rows falls back to 8 bits; the paper's
    per-row codebooks, for which no kernel exists, are left out; one-column tables (first-order weights), tied weights
    and tables that would not shrink are left alone, each with its reason in the findings.
    """

    card = Card(
        name="emb-rowwise-quant",
        family="embeddings",
        summary="Quantise each table row to 8, 4 or 2 bits with its own scale and bias; no training.",
        acts_on=TABLES,
        source="Guan et al. 2019, arXiv 1911.02079",
        claims=frozenset({"bytes"}),
    )
    share: float | None = share_field("bits")
    bits: Literal[8, 4, 2] = Field(8, description="bits of each value")
    ranges: Literal["least", "plain", "greedy", "auto"] = Field(
        "least", description="range of 4 and 2 bit rows: of the least error, minimum to maximum, or narrowed greedily"
    )
    min_rows: int = Field(1000, ge=1, le=10**9, description="smaller tables stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible table.

        Raises:
            NothingMatchedError: no table is eligible.
            BudgetError: no choice of bits a table reaches the share.
            TaskError: a share was asked for and the task cannot give batches to count ids on.
        """
        sites = self.eligible(model, TABLES, context, self._reject)
        bits: list[int] = [self.bits] * len(sites)
        if self.share is not None:
            bits = self._choose(model, task, sites, context)
        for site, width in zip(sites, bits, strict=True):
            model = replace(model, site, self._quantise(site, width, context))
        return model

    def _quantise(self, site: Site, bits: int, context: Context) -> QuantizedEmbedding:
        weight = site.module.weight.detach().float()
        bits = bits if rowwise.representable(weight, bits) else 8
        ranges = self._ranges(bits)
        context.findings.setdefault("tables", {})[site.path] = {"bits": bits, "ranges": ranges}
        return QuantizedEmbedding.from_dense(site.module, bits, ranges)

    def _ranges(self, bits: int) -> rowwise.Ranges:
        if bits == 8:
            return "plain"
        if self.ranges == "auto":
            return "greedy" if bits == 2 else "plain"
        return self.ranges

    def _choose(self, model: nn.Module, task: Task, sites: list[Site], context: Context) -> list[int]:
        """Return bits for each table, so that the share is met with the least error of looked-up rows."""
        if self.share is None or "calibration" not in capabilities(task):
            raise TaskError(f"{self.card.name} needs calibration to choose bits for a share; set bits instead")
        counts = count_ids(model, task, sites)
        options = [self._options(site, count) for site, count in zip(sites, counts, strict=True)]
        total = table_bytes(model)
        fixed = total - sum(module_bytes(site.module) for site in sites)
        chosen = cheapest(options, self.share * total - fixed)
        reached = fixed + sum(option.size for option in chosen)
        context.findings["share"] = round(check_share(reached, total, self.share, self.card.name), 5)
        return [option.bits for option in chosen]

    def _options(self, site: Site, counts: Tensor) -> list[Option]:
        weight = site.module.weight.detach().float()
        found = []
        for bits in rowwise.BITS:
            if rowwise.representable(weight, bits):
                packed = rowwise.pack(weight, bits, self._ranges(bits))
                error = (rowwise.unpack(packed, weight.shape[1], bits) - weight).square().sum(dim=1)
                found.append(Option(bits, packed.numel(), float((counts * error).sum())))
        return found

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


class Option(NamedTuple):
    """One width of a table: bits, bytes, and the squared error that the lookups of the train split would see."""

    bits: int
    size: int
    error: float


def cheapest(options: Sequence[Sequence[Option]], target: float) -> list[Option]:
    """Return one option a table: of those within 2 % of `target` bytes the least error, else the nearest bytes.

    Up to nine tables every combination is tried; beyond, tables are narrowed one by one from the widest, always where
    the least error is added for a byte saved.
    """
    candidates: Iterable[Iterable[Option]] = itertools.product(*options) if len(options) <= 9 else _narrowing(options)

    def rank(candidate: Iterable[Option]) -> tuple[float, float]:
        chosen = list(candidate)
        away = abs(sum(option.size for option in chosen) - target) / max(target, 1.0)
        return max(0.0, away - TOLERANCE), sum(option.error for option in chosen)

    return list(min(candidates, key=rank))


def _narrowing(options: Sequence[Sequence[Option]]) -> Iterator[tuple[Option, ...]]:
    level = [0] * len(options)
    while True:
        yield tuple(option[place] for option, place in zip(options, level, strict=True))
        prices = [_price(option, place) for option, place in zip(options, level, strict=True)]
        if min(prices) == float("inf"):
            return
        level[prices.index(min(prices))] += 1


def _price(options: Sequence[Option], place: int) -> float:
    """Return the error added for each byte saved by the next narrower width; infinity at the last."""
    if place + 1 == len(options):
        return float("inf")
    now, narrower = options[place], options[place + 1]
    return (narrower.error - now.error) / max(now.size - narrower.size, 1)
