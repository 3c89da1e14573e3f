"""Gates on the rows of embedding tables, for one training: soft with a temperature, then hard.

    rows[id] * sigmoid(tau * g[id]) / sigmoid(g0)     soft: exactly 1 at the start, where tau = 1 and g = g0
    rows[id] * keep[id]             / sigmoid(g0)     hard

The gates are no parameters of the model: they have their own Adam, no weight decay, and are no part of its state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored.tables.embedding import StoredEmbedding, TableShape


class GatedTable(StoredEmbedding):
    """A table whose rows pass a gate. It lives during training only and is never saved."""

    def __init__(self, table: nn.Module, initial: float) -> None:
        super().__init__(TableShape.of(table))
        self.table = table
        self.scale = 1.0 / float(torch.sigmoid(torch.tensor(initial)))
        self.logits = torch.full((self.num_embeddings,), initial, requires_grad=True)
        self.temperature = 1.0
        self.keep: Tensor | None = None

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
        found = functional.embedding(ids, self.rows, self.padding_idx)
        if self.keep is not None:
            factor = self.keep[ids].to(found.dtype)
        else:
            factor = torch.sigmoid(self.temperature * self.logits[ids])
        return found * (self.scale * factor).unsqueeze(-1)


class GateOptimizer:
    """Adam on the gates of all tables under the penalty lambda * sum over every row of sigmoid(tau * g).

    The sum runs over the whole vocabulary, so that rows no batch asks for are pushed out too. With a `share` lambda is
    solved for at each step: the value at which the averaged gradient would close all but that share of the gates.
    """

    def __init__(
        self, tables: Sequence[GatedTable], learning_rate: float, penalty: float | None, share: float, memory: int
    ) -> None:
        self.tables = list(tables)
        self.adam = torch.optim.Adam([table.logits for table in tables], lr=learning_rate)
        self.penalty, self.share = penalty, share
        self.decay = 1.0 - 1.0 / max(memory, 2)
        self.mean = [torch.zeros_like(table.logits) for table in tables]
        self.used: list[float] = []

    def step(self) -> None:
        """Move the gates by the gradient that the loss left on them plus that of the penalty; clear it."""
        slopes = []
        for table, mean in zip(self.tables, self.mean, strict=True):
            logits = table.logits.detach()
            gate = torch.sigmoid(table.temperature * logits)
            slopes.append(table.temperature * gate * (1.0 - gate))
            if table.logits.grad is None:
                table.logits.grad = torch.zeros_like(logits)
            mean.mul_(self.decay).add_(table.logits.grad, alpha=1.0 - self.decay)
        weight = self.penalty if self.penalty is not None else self._solve(slopes)
        self.used.append(weight)
        for table, slope in zip(self.tables, slopes, strict=True):
            if table.logits.grad is not None:
                table.logits.grad.add_(slope, alpha=weight)
        self.adam.step()
        self.adam.zero_grad()

    def _solve(self, slopes: list[Tensor]) -> float:
        """Return the smallest penalty under which only `share` of the rows still gain from staying open."""
        # rows whose gate is saturated cannot be moved and would only blur the quantile
        settled = 1.0 - self.decay ** (len(self.used) + 1)
        gain = torch.cat(
            [-mean / settled / slope.clamp(min=1e-6) for mean, slope in zip(self.mean, slopes, strict=True)]
        )
        rank = min(len(gain), max(1, round((1.0 - self.share) * len(gain))))
        return max(float(gain.kthvalue(rank).values), _SMALLEST)


_SMALLEST = 1e-7
"""Above this Adam no longer sees the size of the penalty on rows that get no gradient from data."""
