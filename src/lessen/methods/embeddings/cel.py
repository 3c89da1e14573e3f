"""Clustered embedding learning: ids share vectors, and clusters split while training where their gradients disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import size_of, solve
from lessen.methods.embeddings._shared.retrained import RetrainedTables, Wanted, small_and_large, spread
from lessen.methods.embeddings.hash import RESOLUTION
from lessen.methods.sites import TABLES, blocks
from lessen.stored.tables.cluster_assigned import ClusterAssignedEmbedding
from lessen.stored.tables.embedding import TableShape
from lessen.train.hooks import Hook

MOST_CLUSTERS = 2**16


class ClusterLearningTables(RetrainedTables):
    """Begin with one vector a field; every few steps clusters split along the first principal component of their
    ids' gradients, and ids may change to the other half of their last split.

    Source: clustered embedding learning (CEL), WWW 2023 (arXiv 2302.01478). The authors' code was not within reach;
    what the paper's abstract and reviews leave open is filled in as follows. Clusters of a field split when their sum
    of gradient norms is at least half the field's mean, the largest first; gradients are summed over the steps between
    and scaled to length one; the split keeps ids without gradient where they are. An id changes at the next round to
    the other half of its cluster's split where its summed gradient says that the loss falls to first order; later the
    halves are too far apart for that test. Gradient sums take a full table during training (the paper's lite form
    buffers less). Fields of fewer than `min_rows` ids keep rows of their own.
    """

    card = Card(
        name="emb-cel",
        family="embeddings",
        summary="Share cluster vectors among ids and split clusters where gradients disagree, during training.",
        acts_on=TABLES,
        source="WWW 2023, arXiv 2302.01478",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (ClusterAssignedEmbedding,)
    ratio: float = Field(0.05, gt=0, lt=1, description="clusters as a share of each large field's ids, 65,536 at most")
    every: int = Field(10, ge=1, le=10**6, description="steps between splits")

    def replacement(self, wanted: Wanted, context: Context) -> ClusterAssignedEmbedding:
        """Return a table with every id of a large field in one cluster."""
        shape, ratio = wanted.shape, self.ratio
        if wanted.target is not None:
            ratio = (
                solve(lambda part: size_of(lambda: self._empty(shape, part / RESOLUTION)), 1, RESOLUTION, wanted.target)
                / RESOLUTION
            )
        made, std = self._empty(shape, ratio), spread(wanted.table)
        made.reset_exact(std, context.generator)
        with torch.no_grad():
            made.centres.weight.copy_(torch.randn(made.centres.weight.shape, generator=context.generator) * std)
        return made

    def _empty(self, shape: TableShape, ratio: float) -> ClusterAssignedEmbedding:
        small, _ = small_and_large(shape, self.min_rows)
        large = [block.rows for number, block in enumerate(blocks(shape)) if number not in small]
        clusters = [min(size, MOST_CLUSTERS, math.ceil(ratio * size)) for size in large]
        return ClusterAssignedEmbedding(shape, small, clusters)

    def training_hooks(self, context: Context) -> tuple[Hook, ...]:  # noqa: ARG002
        """Return the hook that splits and re-assigns."""
        return (Splitting(self.every),)


@dataclass
class Growth:
    """What is known of one table while its clusters grow."""

    table: ClusterAssignedEmbedding
    gradients: Tensor
    """Summed gradients of each id of a large field, float32 [ids, dim]."""
    active: list[int] = field(default_factory=list)
    """Clusters in use, a number for each large field."""
    siblings: list[Tensor] = field(default_factory=list)
    """The other half of each cluster that was split last, for each large field: int64 [clusters], -1 for none."""

    @classmethod
    def of(cls, table: ClusterAssignedEmbedding) -> Growth:
        """Start with one cluster a field."""
        none = [torch.full((count,), -1) for count in table.clusters]
        return cls(table, torch.zeros(table.computed_rows, table.embedding_dim), [1] * len(none), none)

    def parts(self) -> list[tuple[slice, int]]:
        """Return for each large field its ids, numbered among the large fields, and its first centre."""
        ids = [sum(block.rows for block in self.table.large[:n]) for n in range(len(self.active) + 1)]
        return [(slice(ids[n], ids[n + 1]), sum(self.table.clusters[:n])) for n in range(len(self.active))]


class Splitting(Hook):
    """Notes the gradients of every id; every few steps it re-assigns ids of the last splits and splits clusters."""

    parallel = False  # gradients are noted row by row, in the process that saw them

    def __init__(self, every: int) -> None:
        self.every = every
        self.tables: list[Growth] = []
        self._handles: list[Any] = []

    def start(self, model: nn.Module) -> None:
        """Watch the outputs of every table."""
        for module in model.modules():
            if isinstance(module, ClusterAssignedEmbedding):
                growth = Growth.of(module)
                self.tables.append(growth)
                self._handles.append(module.register_forward_hook(partial(_watch, growth), with_kwargs=True))

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Re-assign and split when it is time."""
        if step % self.every:
            return
        for growth in self.tables:
            for number in range(len(growth.active)):
                reassign(growth, number)
                grow(growth, number)
            growth.gradients.zero_()

    def finish(self, model: nn.Module) -> None:  # noqa: ARG002
        """Stop watching."""
        for handle in self._handles:
            handle.remove()


def _watch(
    growth: Growth, table: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
) -> None:
    """Have the gradient of a training forward added to the sums of its ids."""
    ids = arguments[0] if arguments else keywords["input"]
    if table.training and output.requires_grad and output.shape[:-1] == ids.shape:
        output.register_hook(partial(_note, growth, ids))  # type: ignore[no-untyped-call]


@torch.no_grad()
def _note(growth: Growth, ids: Tensor, gradient: Tensor) -> None:
    flat, rows = ids.reshape(-1).long(), gradient.reshape(-1, gradient.shape[-1]).float()
    for block, (part, _) in zip(growth.table.large, growth.parts(), strict=True):
        inside = (flat >= block.start) & (flat < block.start + block.rows)
        growth.gradients.index_add_(0, flat[inside] - block.start + part.start, rows[inside])


@torch.no_grad()
def reassign(growth: Growth, number: int) -> int:
    """Move ids of a large field to their sibling cluster where that lowers the loss to first order; return how many."""
    part, first = growth.parts()[number]
    ids = torch.arange(part.start, part.stop)
    now = growth.table.assignment(ids)
    other = growth.siblings[number][now]
    centres = growth.table.centres.weight[first : first + growth.table.clusters[number]]
    change = (growth.gradients[part] * (centres[other.clamp(min=0)] - centres[now])).sum(dim=1)
    moves = (other >= 0) & (change < 0)
    growth.table.assign(ids[moves], other[moves])
    return int(moves.sum())


@torch.no_grad()
def grow(growth: Growth, number: int) -> int:
    """Split the clusters of a large field that need it at least half as much as the mean; return how many split."""
    part, first = growth.parts()[number]
    gradients, clusters = growth.gradients[part], growth.table.clusters[number]
    codes = growth.table.assignment(torch.arange(part.start, part.stop))
    before = growth.active[number]
    growth.siblings[number].fill_(-1)
    need = torch.zeros(clusters, dtype=torch.float32).index_add_(0, codes, gradients.norm(dim=1))
    order = torch.argsort(codes, stable=True)
    ends = torch.bincount(codes, minlength=clusters).cumsum(0)
    needy = int((need[:before] >= 0.5 * need[:before].mean()).sum())
    chosen = torch.argsort(need[:before], descending=True, stable=True)[: min(needy, clusters - before)]
    for cluster in chosen.tolist():
        members = order[int(ends[cluster - 1]) if cluster else 0 : int(ends[cluster])]
        leaving = members[principal_split(gradients[members])]
        if not 0 < len(leaving) < len(members):
            continue
        new = growth.active[number]
        growth.table.centres.weight[first + new] = growth.table.centres.weight[first + cluster]
        growth.table.assign(leaving + part.start, torch.full_like(leaving, new))
        growth.siblings[number][cluster], growth.siblings[number][new] = new, cluster
        growth.active[number] += 1
    return growth.active[number] - before


def principal_split(gradients: Tensor) -> Tensor:
    """Return which of the rows [n, d] lie on the positive side of their first principal component, bool [n].

    Rows are scaled to length one first; zero rows stay on the other side and do not count.
    """
    lengths = gradients.norm(dim=1, keepdim=True)
    known = lengths[:, 0] > 0
    if int(known.sum()) < 2:
        return torch.zeros_like(known)
    rows = (gradients / lengths.clamp(min=1e-30))[known].double()
    centred = rows - rows.mean(dim=0)
    axis = torch.linalg.eigh(centred.t() @ centred)[1][:, -1]
    side = torch.zeros_like(known)
    side[known] = centred @ axis > 0
    return side
