"""One object for every hard token reduction: the row map, and the one way it is applied.

    row[b, i] = output index of token i of image b, or -1 if the token is dropped
    output[b, o] = sum of weight[b, i] * x[b, i] over the tokens i with row[b, i] = o

Merging, pruning, fusing, pooling and selecting differ only in how the map and the weights are made (`plans.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

How = Literal["mean", "plain_mean", "sum", "max", "first"]


@dataclass(frozen=True)
class Plan:
    """A row map of one batch: N tokens become `kept`."""

    row: Tensor
    """int64 [B,N]; -1 for a dropped token."""
    kept: int
    weight: Tensor | None = None
    """float32 [B,N], coefficient of each token in its output; None means the size-weighted mean."""
    share: Tensor | None = None
    """float32 [B,N], factor on each token's size before sizes are summed; None means 1."""
    source: Tensor | None = None
    """int64 [B,kept], the only member of each output, when nothing is joined; then applying is a gather."""
    drops: bool = False
    """Whether some tokens have row -1."""

    def features(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """Return the outputs [B,kept,C] of tokens x [B,N,C]; `size` [B,N] weights the mean when `weight` is None."""
        return self.reduce(x, size)[0]

    def sizes(self, size: Tensor | None = None) -> Tensor:
        """Return the sizes [B,kept] of the outputs: the sum of the members' sizes times their shares."""
        each = self._shares(size)
        return each.gather(1, self.source) if self.source is not None else self._total(each)

    def reduce(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return features and sizes of the outputs, [B,kept,C] and [B,kept]."""
        if self.source is not None:
            return take(x, self.source), self.sizes(size)
        if self.weight is not None:
            return combine(x, self.row, self.weight, self.kept, self.drops), self.sizes(size)
        each = torch.ones_like(self.row, dtype=torch.float32) if size is None else size
        total = self._total(each)
        features = combine(x, self.row, self._divided(each, total), self.kept, self.drops)
        return features, total if self.share is None else self.sizes(size)

    def then(self, later: Plan) -> Plan:
        """Return the plan of this selection followed by a size-weighted merge of what is left."""
        row = torch.where(self.row < 0, -1, later.row.gather(1, self.row.clamp(min=0)))
        return Plan(row, later.kept, drops=self.drops)

    def mean_weights(self, size: Tensor | None = None) -> Tensor:
        """Return size / (sum of the sizes in the same output), float32 [B,N], 0 for dropped tokens."""
        each = torch.ones_like(self.row, dtype=torch.float32) if size is None else size
        return self._divided(each, self._total(each))

    def _shares(self, size: Tensor | None) -> Tensor:
        each = torch.ones_like(self.row, dtype=torch.float32) if size is None else size
        return each if self.share is None else each * self.share

    def _divided(self, each: Tensor, total: Tensor) -> Tensor:
        if not self.drops:
            return each / total.gather(1, self.row)
        return each / total.gather(1, self.row.clamp(min=0)) * (self.row >= 0)

    def _total(self, values: Tensor) -> Tensor:
        """Return the sum of `values` [B,N] over each output, [B,kept]."""
        if not self.drops:
            return values.new_zeros(values.shape[0], self.kept).scatter_add(1, self.row, values)
        inside = torch.where(self.row < 0, self.kept, self.row)
        return values.new_zeros(values.shape[0], self.kept + 1).scatter_add(1, inside, values)[:, : self.kept]

    def aligned(self, values: Tensor, how: How = "first") -> Tensor:
        """Reduce any tensor [B,N,...] that is aligned with the tokens: positions, rotary tables, masks, labels.

        `first` takes the member that comes first in the sequence; `max` and `sum` are over members.
        """
        flat = values.reshape(*values.shape[:2], -1)
        if how in ("mean", "plain_mean", "sum"):
            weight = torch.ones_like(self.row, dtype=torch.float32) if how == "sum" else self.mean_weights()
            result = combine(flat.to(torch.promote_types(flat.dtype, torch.float32)), self.row, weight, self.kept, True)
        elif how == "max":
            result = self._scatter(flat, "amax")
        else:
            result = take(flat, self.first_members())
        return result.reshape(values.shape[0], self.kept, *values.shape[2:])

    def first_members(self) -> Tensor:
        """Return the index of the first member of each output, int64 [B,kept]."""
        if self.source is not None:
            return self.source
        count = self.row.shape[1]
        index = torch.arange(count, device=self.row.device).expand_as(self.row)
        return self._scatter(index[..., None], "amin")[..., 0]

    def _scatter(self, values: Tensor, reduce: str) -> Tensor:
        row = torch.where(self.row < 0, self.kept, self.row)[..., None].expand_as(values)
        empty = values.new_zeros(values.shape[0], self.kept + 1, values.shape[-1])
        return empty.scatter_reduce(1, row, values, reduce, include_self=False)[:, : self.kept]


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return x[b, index[b]]: [B,N,C] and int64 [B,K] give [B,K,C]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def combine(x: Tensor, row: Tensor, weight: Tensor, kept: int, drops: bool) -> Tensor:
    """Return sum of weight * x over each output: x [B,N,C], row and weight [B,N], result [B,kept,C] in x's dtype.

    One `embedding_bag` over the sorted map reads x once and writes the result once in eager mode on a CPU; elsewhere,
    and when the model is compiled or exported, a scatter is used.
    """
    bins = kept + 1 if drops else kept
    inside = torch.where(row < 0, kept, row) if drops else row
    if _traced() or x.device.type != "cpu":
        index = inside[..., None].expand_as(x)
        weighted = x * weight[..., None].to(x.dtype)
        return torch.zeros_like(x[:, :1]).expand(-1, bins, -1).scatter_add(1, index, weighted)[:, :kept]
    batch, _, width = x.shape
    flat = inside.reshape(-1) if batch == 1 else (inside + torch.arange(batch)[:, None] * bins).reshape(-1)
    order = flat.argsort(stable=True)
    count = torch.bincount(flat, minlength=batch * bins)
    result = F.embedding_bag(
        order,
        x.reshape(-1, width),
        count.cumsum(0) - count,
        mode="sum",
        per_sample_weights=weight.reshape(-1).index_select(0, order).to(x.dtype),
    )
    return result.view(batch, bins, width)[:, :kept]


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
