"""AutoSrh: soft gates on each column of each frequency group learn what may go; it is cut to a budget and tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.embeddings._shared.bilevel import ArchitectureSteps, HeldOut
from lessen.methods.embeddings._shared.budget import size_of
from lessen.methods.embeddings._shared.importance import evidence
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings._shared.searched import SearchedTables, SearchForm, search_forms
from lessen.methods.embeddings.mixed_precision import frequency_groups
from lessen.methods.embeddings.pep import MaskedTable
from lessen.methods.sites import TABLES
from lessen.stored.tables.bitmap_embedding import BitmapEmbedding
from lessen.stored.tables.embedding import StoredEmbedding, TableShape, inner_table
from lessen.stored.tables.group_columns import GroupColumnsEmbedding
from lessen.task import Task
from lessen.train.hooks import Hook

Layout = Literal["blocks", "values"]


class GatedTable(SearchForm):
    """Rows times the gates of their group: e_i = E_i * alpha_g(i), every gate in [0, 1]."""

    group: Tensor
    counts: Tensor

    def __init__(
        self,
        shape: TableShape,
        weight: Tensor,
        counts: Tensor,
        groups: int,
        layout: Layout,
        sparsity: float,
        target: int | None,
    ) -> None:
        super().__init__(shape)
        self.layout = layout
        self.table = inner_table(shape.rows, shape.dim, weight.clone())
        self.register_buffer("group", popularity_groups(counts, groups))
        self.register_buffer("counts", counts)
        self.gates = nn.Parameter(torch.ones(int(self.group.max()) + 1, shape.dim))
        values = shape.rows * shape.dim
        self.keep = round((1 - sparsity) * values)
        if target is not None:
            self.keep = min(max((target - self._size(0)) // 4, 0), values)
        self.searched: Tensor | None = None
        self.opened: list[float] = []

    def _size(self, kept: int) -> int:
        if self.layout == "values":
            return size_of(lambda: BitmapEmbedding(self.shape, kept))
        return size_of(lambda: GroupColumnsEmbedding(self.shape, len(self.gates) + 1, kept))

    def lookup(self, ids: Tensor) -> Tensor:
        """Return gated rows: [*] to float32 [*, dim]."""
        return self._without_padding(ids, self.table(ids) * self.gates[self.group[ids]])

    @torch.no_grad()
    def settle(self) -> None:
        """Fold the gates into the rows."""
        self.opened = self.gates.mean(dim=1).tolist()
        self.searched = self.table.weight * self.gates[self.group]
        if self.padding_idx is not None:
            self.searched[self.padding_idx] = 0.0

    def kept(self, start: SearchForm) -> StoredEmbedding:  # noqa: ARG002
        """Return the gated rows without what is smallest in them: whole columns of groups, or single values."""
        assert self.searched is not None
        size = self.searched.abs() * evidence(self.counts)
        if self.layout == "values":
            mask = torch.zeros(self.searched.numel(), dtype=torch.bool)
            mask[size.view(-1).topk(self.keep).indices] = True
            return MaskedTable(self.shape, self.searched, mask.view(self.searched.shape))
        group, columns = largest_blocks(size, self.group, self.counts, self.keep)
        return GroupColumnsTable(self.shape, self.searched, group, columns)

    def stored_bytes(self) -> int:
        """Return the bytes of what will be kept."""
        return self._size(self.keep)

    def outcome(self) -> dict[str, Any]:
        """Return the mean gate of each group, from rare to frequent."""
        return {"gates": [round(value, 4) for value in self.opened], "kept": self.keep}


class GroupColumnsTable(MaskedTable):
    """A dense table of which each row sees and trains the columns of its group only."""

    group: Tensor

    def __init__(self, shape: TableShape, weight: Tensor, group: Tensor, columns: Tensor) -> None:
        super().__init__(shape, weight, columns[group])
        self.group, self.columns = group, columns

    def lookup(self, ids: Tensor) -> Tensor:
        """Return masked rows: [*] to float32 [*, dim]."""
        return self._without_padding(ids, super().lookup(ids))

    def stored_bytes(self) -> int:
        """Return the bytes of the stored form."""
        return size_of(lambda: GroupColumnsEmbedding(self.shape, len(self.columns), int(self.mask.sum())))

    def stored(self) -> StoredEmbedding:
        """Return the values of each row's columns."""
        return GroupColumnsEmbedding.from_dense(self.shape, self.table.weight, self.group, self.columns)


def popularity_groups(counts: Tensor, groups: int) -> Tensor:
    """Return the group of each id int64 [rows], from rare to frequent: equal sizes, but equal counts share a group."""
    group: Tensor = frequency_groups(counts, groups)[0]
    _, same = counts.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    first = torch.full((int(same.max()) + 1,), groups).scatter_reduce_(0, same, group, "amin")
    _, group = first[same].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return group


def largest_blocks(size: Tensor, group: Tensor, counts: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the group of each row int64 [rows] and the columns bool [groups + 1, dim] that hold `keep` values.

    Blocks (a column of a group) are taken in the order of their mean `size`. The first that no longer fits is given
    to the most frequent rows of its group, as many as there is room for; they become a group of their own, the last.
    """
    rows = group.bincount()
    kinds, dim = len(rows), size.shape[1]
    scores = torch.zeros(kinds, dim).index_add_(0, group, size) / rows.unsqueeze(1)
    columns, group = torch.zeros(kinds + 1, dim, dtype=torch.bool), group.clone()
    for block in scores.view(-1).argsort(descending=True, stable=True).tolist():
        kind, column = divmod(block, dim)
        if rows[kind] > keep:
            members = (group == kind).nonzero()[:, 0]
            chosen = members[counts[members].argsort(descending=True, stable=True)[:keep]]
            group[chosen] = kinds
            columns[kinds] = columns[kind]
            columns[kinds, column] = True
            break
        columns[kind, column] = True
        keep -= int(rows[kind])
    return group, columns


class GateSteps(ArchitectureSteps):
    """Moves gates by the loss on held-out batches, while of the model only the gated tables learn."""

    def __init__(self, held_out: HeldOut, rate: float, l1: float) -> None:
        super().__init__(held_out)
        self.rate, self.l1 = rate, l1
        self.frozen: list[nn.Parameter] = []

    def start(self, model: nn.Module) -> None:
        """Freeze everything but the tables and their gates."""
        free = {id(p) for form in search_forms(model).values() for p in form.parameters()}
        self.frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in free]
        for parameter in self.frozen:
            parameter.requires_grad_(False)

    def finish(self, model: nn.Module) -> None:  # noqa: ARG002
        """Undo that."""
        for parameter in self.frozen:
            parameter.requires_grad_(True)

    def architecture(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the gates of all tables."""
        return [form.gates for form in search_forms(model).values() if isinstance(form, GatedTable)]

    def move(self, model: nn.Module, gradients: list[Tensor], batch: Any) -> None:  # noqa: ARG002
        """Descend by gradients of mean size 1 in each group, so that frequency does not decide; stay in [0, 1]."""
        for gates, gradient in zip(self.architecture(model), gradients, strict=True):
            gates.copy_(stepped(gates, gradient + self.l1 * gates.sign(), self.rate))


def stepped(gates: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """Return gates [groups, dim] after one step by the gradient divided by its mean size in each group."""
    scale = gradient.abs().mean(dim=1, keepdim=True) + 1e-8
    return (gates - rate * gradient / scale).clamp(0.0, 1.0)


class GatedColumnTables(SearchedTables):
    """Learn a gate for each column of each popularity group, cut the smallest of gate times row, and tune the rest.

    Source: AutoSrh, TKDE 2023 (early version DNIS, arXiv 2006.04466), search space "free", first-order. Gates start
    from a warm model (`start: given`, or a fresh build trained first) and move by the loss on train batches that the
    tables do not see during the search, by gradients normalised in each group; only the tables of the model learn.
    Gates are folded into the rows and the rest is tuned under the mask. `layout: blocks` keeps whole columns of groups,
    by their mean size, which needs no index for a value; `values` keeps single values by one threshold, as published.
    Differences: sizes are weighed by the row's train lookups (see `importance`), for on a log of mostly new ids size
    alone keeps those, and ends at chance; six equal groups (Hetu's) in which equal counts stay together, formed within
    a table; the search ends after `search_epochs` in place of a plateau; the last block that fits in part goes to the
    most frequent rows of its group, so that a share is hit.
    """

    card = Card(
        name="emb-autosrh",
        family="embeddings",
        summary="Learn gates on the columns of each popularity group, cut the smallest to a budget, and tune the rest.",
        acts_on=TABLES,
        source="TKDE 2023; arXiv 2006.04466",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (GroupColumnsEmbedding, BitmapEmbedding)
    counts_ids = True
    keeps_network = True
    sparsity: float = Field(0.8, gt=0, lt=1, description="share of a table's values that must go")
    layout: Layout = Field("blocks", description="what is cut: columns of groups, or single values")
    groups: int = Field(6, ge=1, le=15, description="popularity groups")
    gate_rate: float = Field(0.01, gt=0, le=1, description="learning rate of the gates")
    l1: float = Field(1e-5, ge=0, le=1, description="weight of the sum of gates in the loss")
    held_out: int = Field(4, ge=2, le=1000, description="every n-th train batch is the gates', not the tables'")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:  # noqa: ARG002
        """Return the gated table, started from its weights."""
        assert wanted.counts is not None
        weight = wanted.table.weight.detach().float()
        return GatedTable(wanted.shape, weight, wanted.counts, self.groups, self.layout, self.sparsity, wanted.target)

    def search(self, model: nn.Module, task: Task, context: Context) -> None:
        """Train a fresh build first, its gates open; then search."""
        if context.findings["start"] == "fresh build":
            gates = [form.gates for form in search_forms(model).values() if isinstance(form, GatedTable)]
            for gate in gates:
                gate.requires_grad_(False)
            retrain.train(model, task, context)
            for gate in gates:
                gate.requires_grad_(True)
        super().search(model, task, context)

    def search_task(self, task: Task, context: Context) -> Task:
        """Return the task without the batches that the gates learn on."""
        return HeldOut(task, self.held_out, context.seed).training()

    def search_hooks(self, task: Task, context: Context) -> Sequence[Hook]:
        """Return the steps of the gates."""
        return (GateSteps(HeldOut(task, self.held_out, context.seed), self.gate_rate, self.l1),)

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return how many values stay."""
        assert isinstance(made, GatedTable)
        return {"kept": made.keep}
