"""Bits for each group of ids, chosen under a byte budget from the error that lookups would see; no training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.calibration import count_ids
from lessen.methods.embeddings._shared.budget import (
    TOLERANCE,
    check_share,
    share_field,
    share_out,
    size_of,
    table_bytes,
    targets,
)
from lessen.methods.embeddings.mixed_precision import fit_to_size, frequency_groups
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, blocks, module_bytes, replace, too_small
from lessen.stored.bits import row_bytes
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.mixed_bits import MOST_BITS, MixedBitsEmbedding, lowest
from lessen.task import Task

WIDTHS = range(MOST_BITS + 1)
SHRINKS = [0.5 + 0.025 * step for step in range(21)]
"""Parts of the widest grid that are tried as the range of the others."""


class MixedBitsTables(ModuleMethod):
    """Give each group of equally frequent ids of a field 0 to 8 bits, where the error of looked-up rows falls most.

    Source: per-feature bits as in Mixed-Precision Embeddings (arXiv 2409.20305), with the training-free rule of
    `emb-rowwise-quant`: squared error weighted by the square root of how often the train split looks a row up;
    by the count itself rare rows lose all their bits, which measured worse at every size. All rows share one offset
    and one step for each number of bits, which is the one with the least weighted error, so that a row holds nothing
    but its codes and one byte that says where they lie. Bits start at 8 and fall one at a time where that costs least
    for its bytes until the size is reached.
    """

    card = Card(
        name="emb-mixed-bits",
        family="embeddings",
        summary="Choose 0 to 8 bits for each group of ids under a byte budget, by the error of lookups; no training.",
        acts_on=TABLES,
        source="arXiv 2409.20305; arXiv 1911.02079",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    share: float | None = share_field("mean_bits")
    mean_bits: float = Field(4.0, gt=0, lt=8, description="mean bits of a value over all rows")
    groups: int = Field(16, ge=1, le=65536, description="groups by frequency in each field")
    min_rows: int = Field(200, ge=1, le=10**9, description="smaller tables stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible table.

        Raises:
            NothingMatchedError: no table is eligible.
            BudgetError: the share cannot be reached.
            TaskError: the train split is empty.
        """
        sites = self.eligible(model, TABLES, context, self._reject)
        before = table_bytes(model)
        goals = [self._size(site.module) for site in sites]
        if self.share is not None:
            goals = targets(model, sites, self.share)
        counts = count_ids(model, task, sites)
        sizes = [module_bytes(site.module) for site in sites]
        slack = TOLERANCE * self.share * before if self.share is not None else math.inf

        def make(number: int, goal: int) -> MixedBitsEmbedding:
            return quantised(sites[number].module, counts[number], self.groups, goal)

        made = share_out(sizes, goals, slack, make, lambda _, table: module_bytes(table))
        if self.share is not None:
            saved = sum(module_bytes(s.module) - module_bytes(new) for s, new in zip(sites, made, strict=True))
            context.findings["share"] = round(check_share(before - saved, before, self.share, self.card.name), 5)
        for site, new in zip(sites, made, strict=True):
            context.findings.setdefault("tables", {})[site.path] = {"bytes": module_bytes(new)}
            model = replace(model, site, new)
        return model

    def _size(self, table: Any) -> int:
        shape = TableShape.of(table)
        return _fixed(shape) + int(shape.rows * shape.dim * self.mean_bits / 8)

    def _reject(self, table: Any) -> str | None:
        if table.embedding_dim == 1:
            return "has one column (first-order weights)"
        return too_small(table, self.min_rows)


def _fixed(shape: TableShape) -> int:
    return size_of(lambda: MixedBitsEmbedding(shape, 0))


@torch.no_grad()
def quantised(table: Any, counts: Tensor, groups: int, target: int) -> MixedBitsEmbedding:
    """Return a table of about `target` bytes whose bits follow the error of lookups; counts int64 [rows]."""
    shape, weight = TableShape.of(table), table.weight.detach().float()
    weights = (counts.double() + 0.1).sqrt()
    offset = ((weights @ weight.double()) / weights.sum()).float()
    steps = torch.stack([best_step(weight - offset, weights, bits) for bits in WIDTHS])
    group = field_groups(shape, counts, groups)
    rows = group.bincount()
    errors = torch.stack(
        [
            torch.zeros(len(rows), dtype=torch.float64).index_add_(
                0, group, weights * _error(weight, offset, steps, bits)
            )
            for bits in WIDTHS
        ],
        dim=1,
    )
    sizes = rows.unsqueeze(1) * torch.tensor([row_bytes(shape.dim, bits) for bits in WIDTHS])
    chosen = fit_to_size(torch.full_like(rows, MOST_BITS), errors, sizes, target - _fixed(shape))
    return MixedBitsEmbedding.from_dense(shape, weight, chosen[group], steps, offset)


def field_groups(shape: TableShape, counts: Tensor, groups: int) -> Tensor:
    """Return the group of each id, int64 [rows]: up to `groups` by frequency in every field, numbered throughout."""
    found, first = [], 0
    for block in blocks(shape):
        own, rows, _ = frequency_groups(counts[block.start : block.start + block.rows], groups)
        found.append(own + first)
        first += len(rows)
    return torch.cat(found)


def best_step(rows: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Return the step, of some parts of the largest value's, at which rounding rows [n, dim] errs least; a scalar."""
    largest = rows.abs().max().clamp(min=1e-12)
    if bits == 0:
        return largest
    tried: list[Tensor] = [largest * part / max(1, 2 ** (bits - 1) - 1) for part in _parts(bits)]
    zero = torch.zeros(rows.shape[1])
    errors = [float((weights * _error(rows, zero, step.expand(bits + 1), bits)).sum()) for step in tried]
    return tried[errors.index(min(errors))]


def _parts(bits: int) -> Sequence[float]:
    """Return parts of the range to try: narrow grids gain by clipping much, wide ones little."""
    return SHRINKS if bits > 4 else [0.05 * step for step in range(1, 21)]


def _error(weight: Tensor, offset: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Return the squared error of each row at a width, float64 [rows]."""
    if bits == 0:
        return torch.sum(weight.double().square(), dim=1)
    levels = ((weight - offset) / steps[bits]).round().clamp(lowest(bits), -lowest(bits) - 1)
    error = (levels * steps[bits] + offset - weight).double().square()
    return torch.sum(error, dim=1)
