"""Gates on the rows of embedding tables, for one training: soft with a temperature, then hard.

    rows[id] * sigmoid(tau * g[id]) / sigmoid(g0)     soft: exactly 1 at the start, where tau = 1 and g = g0
    rows[id] * keep[id]             / sigmoid(g0)     hard

The gates are no parameters of the model: they have their own Adam, no weight decay, and are no part of its state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored.tables.embedding import StoredEmbedding, TableShape


class RowGatedTable(StoredEmbedding):
    """A table whose rows pass a gate. It lives during training only and is never saved."""

    def __init__(self, table: nn.Module, initial: float) -> None:
        super().__init__(TableShape.of(table))
        self.table = table
        self.scale = 1.0 / float(torch.sigmoid(torch.tensor(initial)))
        self.logits = torch.full((self.num_embeddings,), initial, requires_grad=True)
        self.temperature = 1.0
        self.keep: Tensor | None = None
        self.seen: Tensor | None = None
        """Lookups of each row, counted where this is not None: float32 [rows]."""

    @property
    def rows(self) -> Tensor:
        """The ungated rows, float32 [rows, dim]."""
        weight = self.table.weight
        if not isinstance(weight, Tensor):
            raise TypeError(f"{type(self.table).__name__} has no weight")
        return weight

    def gate(self) -> Tensor:
        """Return the factor of every row, [rows]."""
        if self.keep is not None:
            return self.keep.to(torch.float32) * self.scale
        return torch.sigmoid(self.temperature * self.logits) * self.scale

    def lookup(self, ids: Tensor) -> Tensor:
        """Return gated rows: [*] to [*, dim]."""
        if self.seen is not None:
            self.seen += torch.bincount(ids.flatten(), minlength=self.num_embeddings)
        found = functional.embedding(ids, self.rows, self.padding_idx)
        if self.keep is not None:
            factor = self.keep[ids].to(found.dtype)
        else:
            factor = torch.sigmoid(self.temperature * self.logits[ids])
        return found * (self.scale * factor).unsqueeze(-1)


class GateOptimizer:
    """Adam on the gates of all tables under the penalty lambda * sum over every row of sigmoid(tau * g).

    The sum runs over the whole vocabulary, so that rows no batch asks for are pushed out too. Lambda is steered where
    no penalty is given: it grows while more gates than `share` are on their way to stay open, one epoch ahead at their
    present speed, and shrinks while fewer are. The sign of a gate thus decides, as under a constant penalty, and the
    share comes out; the size of a logit says little, since Adam moves all of them at about one speed.

    Args:
        memory: steps of an epoch.
    """

    def __init__(
        self, tables: Sequence[RowGatedTable], learning_rate: float, penalty: float | None, share: float, memory: int
    ) -> None:
        self.tables = list(tables)
        self.adam = torch.optim.Adam([table.logits for table in tables], lr=learning_rate)
        self.penalty, self.share = penalty, share
        self.epoch = max(memory, 2)
        self.speed = [torch.zeros_like(table.logits) for table in tables]
        self.steered = math.log(_FIRST)
        self.used: list[float] = []

    def step(self) -> None:
        """Move the gates by the gradient that the loss left on them plus that of the penalty; clear it."""
        slopes, before = [], [table.logits.detach().clone() for table in self.tables]
        for table in self.tables:
            gate = torch.sigmoid(table.temperature * table.logits.detach())
            slopes.append(table.temperature * gate * (1.0 - gate))
            if table.logits.grad is None:
                table.logits.grad = torch.zeros_like(gate)
        weight = self.penalty if self.penalty is not None else math.exp(self.steered)
        self.used.append(weight)
        for table, slope in zip(self.tables, slopes, strict=True):
            if table.logits.grad is not None:
                table.logits.grad.add_(slope, alpha=weight)
        self.adam.step()
        self.adam.zero_grad()
        if self.penalty is None:
            self._steer(before)

    def _steer(self, before: list[Tensor]) -> None:
        """Move lambda by how far the share of gates that will be open is from the one asked for."""
        opening, total = 0, 0
        for table, speed, old in zip(self.tables, self.speed, before, strict=True):
            logits = table.logits.detach()
            speed.lerp_(logits - old, min(8.0 / self.epoch, 1.0))
            opening += int((logits + speed * self.epoch > 0).sum())
            total += len(logits)
        change = _GAIN / self.epoch * (opening / total - self.share)
        self.steered = min(max(self.steered + change, math.log(_SMALLEST)), 0.0)


_FIRST = 1e-6
_SMALLEST = 1e-7
"""The bound above which Adam no longer sees the size of the penalty on rows that get no gradient from data."""
_GAIN = 6.0
"""Powers of e by which lambda moves in an epoch in which every gate is on the wrong side."""
