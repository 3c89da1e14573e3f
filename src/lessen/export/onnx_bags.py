"""Pooled bags in an ONNX graph: rows are looked up one by one, weighed, and added up where their bag is.

ids [bags, length]   rows [bags, length, dim] -> sum, mean or max over the length, padding left out
ids [n], offsets     bag of each id: how many offsets are at or before it, less one -> rows added there
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError


class SingleRows(nn.Module):
    """The rows of a table that pools, one for each id."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [*, dim] of ids [*]."""
        if isinstance(self.table, nn.EmbeddingBag):
            return self.table.weight[ids]
        rows: Tensor = self.table.lookup(ids)
        return rows


class Bags(nn.Module):
    """An `nn.EmbeddingBag` or a stored table with its mode, over a form that looks up single rows."""

    def __init__(self, form: nn.Module, table: Any) -> None:
        super().__init__()
        self.form, self.mode, self.padding_idx = form, str(table.mode), table.padding_idx
        self.include_last_offset = bool(table.include_last_offset)
        if getattr(table, "max_norm", None) is not None:
            raise ConfigError("an EmbeddingBag with max_norm changes its rows while it runs, and has no ONNX form")

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Return bags [bags, dim]. Raises ConfigError for bags by max that are given by offsets."""
        rows = self.form(input)
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.reshape(input.shape)[..., None].to(rows.dtype)
        held = torch.ones_like(input) if self.padding_idx is None else (input != self.padding_idx).to(input.dtype)
        if input.dim() == 2:
            return self._pooled(rows, held[..., None] > 0)
        if offsets is None:
            raise ConfigError("flat ids need offsets to make bags")
        if self.mode == "max":
            raise ConfigError("bags by max that are given by offsets have no ONNX form; give ids [bags, length]")
        bags = offsets[:-1] if self.include_last_offset else offsets
        place = bag_of_each(input, bags)
        total = _added(rows * (held > 0)[:, None], place, bags)
        if self.mode == "sum":
            return total
        return total / _added(held[:, None].to(rows.dtype), place, bags).clamp(min=1)

    def _pooled(self, rows: Tensor, held: Tensor) -> Tensor:
        if self.mode == "max":
            found = torch.where(held, rows, torch.finfo(rows.dtype).min).amax(1)
            return torch.where(held.any(1), found, 0.0)
        total = torch.where(held, rows, 0.0).sum(1)
        return total if self.mode == "sum" else total / held.sum(1).clamp(min=1)


def bag_of_each(ids: Tensor, bags: Tensor) -> Tensor:
    """Return the bag of each of ids [n], int64 [n]; `bags` int [bags] are the places where bags begin, 0 first."""
    marks = torch.zeros_like(torch.cat([ids[:1], ids]), dtype=torch.int64)
    return marks.scatter_add(0, bags.long(), torch.ones_like(bags, dtype=torch.int64)).cumsum(0)[:-1] - 1


def _added(values: Tensor, place: Tensor, bags: Tensor) -> Tensor:
    empty = values.new_zeros(bags.shape[0], values.shape[1])
    return empty.index_add(0, place, values)
