"""MPE: groups of ids, formed by how often they occur, learn how many bits they need, then train at those bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings._shared.searched import SearchedTables, SearchForm
from lessen.methods.embeddings._shared.trained_form import TrainingForm
from lessen.methods.sites import TABLES
from lessen.stored.bits import row_bytes
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.tables.mixed_bits import MOST_BITS, MixedBitsEmbedding, lowest
from lessen.task import Task

WIDTHS = (0, 1, 2, 3, 4, 5, 6)
"""Numbers of bits to choose from; a row of none is zero."""


class OffsetGrids(nn.Module):
    """The grids of all widths: one step for each number of bits, one offset for each column (LSQ+)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        mean = float(weight.abs().mean().clamp(min=1e-6))
        first = [2.0 * mean / math.sqrt(2.0 ** (bits - 1)) if bits else 1.0 for bits in range(MOST_BITS + 1)]
        self.steps = nn.Parameter(torch.tensor(first))
        self.offset = nn.Parameter(torch.zeros(weight.shape[1]))
        self.scale = 1.0 / math.sqrt(weight.numel())

    def positive(self) -> Tensor:
        """Return the steps as they are used, float32 [9]."""
        return self.steps.abs() + 1e-10

    def quantise(self, rows: Tensor, bits: int) -> Tensor:
        """Return rows [*, dim] on the grid of `bits`; gradients follow the LSQ+ rule."""
        if bits == 0:
            return torch.zeros_like(rows)
        scale = self.scale / math.sqrt(2.0 ** (bits - 1))
        step, offset = _slowed(self.positive()[bits], scale), _slowed(self.offset, scale)
        levels = ((rows - offset) / step).clamp(lowest(bits), -lowest(bits) - 1)
        return (levels + (levels.round() - levels).detach()) * step + offset


def _slowed(value: Tensor, scale: float) -> Tensor:
    """Return exactly `value`, whose gradient is multiplied by `scale`."""
    moved = value * scale
    return value.detach() + (moved - moved.detach())


class BitsSearchTable(SearchForm):
    """Every row is a blend of its values at all widths; the blend is learned for each group of ids."""

    group: Tensor
    counts: Tensor

    def __init__(
        self,
        shape: TableShape,
        weight: Tensor,
        counts: Tensor,
        groups: int,
        temperature: float,
        strength: float,
        target: int | None,
    ) -> None:
        super().__init__(shape)
        self.temperature, self.strength, self.target = temperature, strength, target
        self.table = inner_table(shape.rows, shape.dim, weight.clone())
        self.grids = OffsetGrids(weight)
        group, self.group_rows, protection = frequency_groups(counts, groups)
        self.register_buffer("group", group)
        self.register_buffer("counts", counts)
        self.weights = 1.0 / protection
        self.logits = nn.Parameter(torch.zeros(len(self.group_rows), len(WIDTHS)))
        self.sizes = torch.tensor([row_bytes(shape.dim, bits) for bits in WIDTHS])
        self.bits: Tensor | None = None

    def shares(self) -> Tensor:
        """Return the share of each width in each group, float32 [groups, widths]; rows sum to 1."""
        return torch.softmax(self.logits / self.temperature, dim=1)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return blended rows: [*] to float32 [*, dim]."""
        rows, shares = self.table(ids), self.shares()
        each = shares[self.group[ids]]
        blended = torch.zeros_like(rows)
        for place in (shares > 1e-6).any(dim=0).nonzero()[:, 0].tolist():
            blended = blended + each[..., place : place + 1] * self.grids.quantise(rows, WIDTHS[place])
        return self._without_padding(ids, blended)

    def penalty(self) -> Tensor | None:
        """Return what pushes rare groups to few bits; with a target, only while the expected bytes exceed it."""
        shares = self.shares()
        if self.target is not None and float(self.expected_bytes(shares)) <= self.target:
            return None
        bits = shares @ torch.tensor(WIDTHS, dtype=torch.float32)
        return self.strength * (bits * self.weights).sum()

    def expected_bytes(self, shares: Tensor) -> Tensor:
        """Return the bytes of the table if widths were drawn by their shares."""
        return self._fixed() + (self.group_rows * (shares.detach() @ self.sizes.float())).sum()

    def _fixed(self) -> int:
        return size_of(lambda: MixedBitsEmbedding(self.shape, 0))

    @torch.no_grad()
    def decide(self) -> None:
        """Take the largest width with a fair share in each group; with a target, move to it where it costs least."""
        fair = self.shares() >= 1.0 / (2 * len(WIDTHS))
        chosen = (fair * torch.arange(len(WIDTHS))).amax(dim=1)
        if self.target is not None:
            errors = torch.stack([self._error(bits) for bits in WIDTHS], dim=1)
            chosen = fit_to_size(chosen, errors, self.group_rows.unsqueeze(1) * self.sizes, self.target - self._fixed())
        self.bits = torch.tensor(WIDTHS)[chosen]

    def _error(self, bits: int) -> Tensor:
        """Return the squared error that lookups of each group would see at a width, float64 [groups]."""
        rows = self.table.weight
        error = (self.grids.quantise(rows, bits) - rows).square().sum(dim=1).double() * (self.counts + 0.1)
        return torch.zeros(len(self.group_rows), dtype=torch.float64).index_add_(0, self.group, error)

    def kept(self, start: SearchForm) -> StoredEmbedding:
        """Return the start's rows at the chosen bits, on the grids that were learned."""
        assert isinstance(start, BitsSearchTable)
        assert self.bits is not None
        return FixedBitsTable(self.shape, start.table.weight, self.bits[self.group], self.grids)

    def stored_bytes(self) -> int:
        """Return the bytes aimed at; without a target, those of 3 bits everywhere."""
        most = self._fixed() + self.shape.rows * int(self.sizes[-1])
        if self.target is None:
            return self._fixed() + self.shape.rows * row_bytes(self.shape.dim, 3)
        return min(max(self.target, self._fixed()), most)

    def outcome(self) -> dict[str, Any]:
        """Return how many rows got how many bits, and the mean over groups."""
        assert self.bits is not None
        rows = self.bits[self.group].bincount(minlength=WIDTHS[-1] + 1).tolist()
        return {"rows_by_bits": rows, "mean_bits": round(float(self.bits.float().mean()), 3)}


class FixedBitsTable(TrainingForm):
    """Rows that are rounded at lookup, each to its own bits."""

    bits: Tensor

    def __init__(self, shape: TableShape, weight: Tensor, bits: Tensor, grids: OffsetGrids) -> None:
        super().__init__(shape)
        self.table = inner_table(shape.rows, shape.dim, weight.detach().clone())
        self.register_buffer("bits", bits.clone())
        self.grids = grids

    def lookup(self, ids: Tensor) -> Tensor:
        """Return rounded rows: [*] to float32 [*, dim]."""
        rows, bits = self.table(ids), self.bits[ids].unsqueeze(-1)
        found = torch.zeros_like(rows)
        for width in bits.unique().tolist():  # type: ignore[no-untyped-call]
            found = torch.where(bits == width, self.grids.quantise(rows, width), found)
        return self._without_padding(ids, found)

    def stored_bytes(self) -> int:
        """Return the bytes of the packed form."""
        size = sum(row_bytes(self.shape.dim, bits) * int((self.bits == bits).sum()) for bits in WIDTHS)
        return size_of(lambda: MixedBitsEmbedding(self.shape, size))

    @torch.no_grad()
    def stored(self) -> StoredEmbedding:
        """Return packed codes."""
        return MixedBitsEmbedding.from_dense(
            self.shape, self.table.weight, self.bits, self.grids.positive(), self.grids.offset
        )


def frequency_groups(counts: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for ids sorted from rare to frequent and cut into groups of equal size: the group of each id int64 [rows],
    rows of each group, and the total count of each group divided by the smallest, float32 [groups].
    """
    size = -(-len(counts) // groups)
    group = torch.empty(len(counts), dtype=torch.int64)
    group[counts.argsort(stable=True)] = torch.arange(len(counts)) // size
    rows = group.bincount()
    totals = torch.zeros(len(rows)).index_add_(0, group, counts.float()).clamp(min=1.0)
    return group, rows, totals / totals.min()


def fit_to_size(chosen: Tensor, errors: Tensor, sizes: Tensor, target: int) -> Tensor:
    """Move choices [groups] one place at a time until their sizes sum to about `target`.

    Each time the group moves whose error [groups, widths] changes least (down) or falls most (up) for the bytes
    [groups, widths] that it gives or takes; the last move is undone if the sum was nearer to the target without it.
    """
    chosen, every = chosen.clone(), torch.arange(len(chosen))
    total = int(sizes[every, chosen].sum())
    step = -1 if total > target else 1
    while (total > target) == (step < 0):
        moved = (chosen + step).clamp(0, sizes.shape[1] - 1)
        added = (sizes[every, moved] - sizes[every, chosen]).abs().double().clamp(min=1e-9)
        price = (errors[every, moved] - errors[every, chosen]) / added
        price[moved == chosen] = torch.inf
        best = int(price.argmin())
        change = int(sizes[best, moved[best]] - sizes[best, chosen[best]])
        crosses = (total + change > target) != (step < 0)
        if moved[best] == chosen[best] or (crosses and abs(total + change - target) > abs(total - target)):
            break
        chosen[best] = moved[best]
        total += change
    return chosen


class MixedPrecisionTables(SearchedTables):
    """Learn 0 to 6 bits for each group of equally frequent ids, then train the first rows again at those bits.

    Source: Mixed-Precision Embeddings, 2024 (arXiv 2409.20305): while searching, a row is the blend of its values on
    all grids, weighted by a softmax so cold that it soon picks one; a penalty pushes rare groups to few bits. The
    second training keeps the searched network and grids and starts from the rows before the search. The penalty acts,
    where `share` is given, only while the expected bytes exceed it, and the searched bits are then moved to it, one
    group at a time, where the error of looked-up rows changes least. Stored with codes packed to the bit and one byte a
    row that says where it lies. Differences: groups are formed within a table; ids never seen count as seen once in
    totals.
    """

    card = Card(
        name="emb-mixed-precision",
        family="embeddings",
        summary="Learn how many bits each group of equally frequent ids needs, from none to six.",
        acts_on=TABLES,
        source="arXiv 2409.20305",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    finds_size = True
    makes = (MixedBitsEmbedding,)
    counts_ids = True
    keeps_network = True
    groups: int = Field(128, ge=1, le=65536, description="groups of ids by frequency")
    temperature: float = Field(3e-3, gt=0, le=1e3, description="temperature of the softmax over widths")
    strength: float = Field(1e-4, ge=0, le=1e3, description="weight of the penalty on bits (lambda)")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:  # noqa: ARG002
        """Return the blended table, started from its weights."""
        assert wanted.counts is not None
        weight = wanted.table.weight.detach().float()
        return BitsSearchTable(
            wanted.shape, weight, wanted.counts, self.groups, self.temperature, self.strength, wanted.target
        )

    def decide(self, model: nn.Module, forms: Sequence[SearchForm], task: Task, context: Context) -> None:  # noqa: ARG002
        """Choose the bits of every group."""
        for form in forms:
            assert isinstance(form, BitsSearchTable)
            form.decide()

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:  # noqa: ARG002
        """Record nothing before the search."""
        return {}
