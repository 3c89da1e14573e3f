"""Table updates whose cost is what a batch touches, not what the table holds: lazy Adam and row-wise Adagrad.

Both take the sparse gradients that `nn.Embedding(sparse=True)` makes: row numbers and one gradient row for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam


class TouchedRows(torch.optim.Optimizer):
    """Base: hands `update` the distinct touched rows of each table and their summed gradients."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the rows that have a gradient; a dense gradient touches every row."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                rows, gradient = touched(table)
                self.update(table, rows, gradient, group)

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Move `table[rows]` [n, d] by `gradient` [n, d]."""
        raise NotImplementedError


def touched(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows [n] and gradients [n, d] of a table; a sparse gradient is coalesced in place."""
    gradient = table.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return torch.arange(len(table), device=table.device), gradient
    if not gradient.is_coalesced():
        table.grad = gradient = summed_rows(gradient)
    return gradient._indices()[0], gradient._values()


def summed_rows(gradient: Tensor) -> Tensor:
    """Return a sparse gradient [rows, d] coalesced: each row once, in order, its values summed in batch order.

    The same as `Tensor.coalesce`, several times faster on the CPU: row numbers are sorted as int32, and the values are
    summed by the vectorised kernel of `embedding_bag`.
    """
    rows, values = gradient._indices()[0], gradient._values()
    if not len(rows):
        return gradient.coalesce()
    small = rows.int() if len(gradient) <= torch.iinfo(torch.int32).max else rows
    ordered, order = torch.sort(small, stable=True)
    starts = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]]).nonzero().squeeze(1)
    summed = F.embedding_bag(order, values, starts, mode="sum")
    distinct = ordered[starts].long().unsqueeze(0)
    return torch.sparse_coo_tensor(distinct, summed, gradient.shape, check_invariants=False, is_coalesced=True)


def move(table: Tensor, rows: Tensor, direction: Tensor, scale: float) -> None:
    """Add `scale * direction` to distinct rows; a gather and a copy are several times faster than `index_add_`."""
    table.index_copy_(0, rows, table.index_select(0, rows).add_(direction, alpha=scale))


class LazyAdam(TouchedRows):
    """Adam on touched rows, with moments that are exactly those of dense Adam.

    A row that was last touched k steps ago first gets the decay it missed, beta^k, so that the bias correction of the
    global step is right (torch.optim.SparseAdam leaves the decay out and over-corrects rare rows). What differs from
    dense Adam is only that an untouched row does not coast on its old momentum.
    """

    def __init__(
        self,
        tables: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(tables, {"lr": lr, "betas": betas, "eps": eps})
        self.room: dict[tuple[int, str], Tensor] = {}
        """Memory for gathered rows, kept from step to step: asking for it anew costs more than filling it."""

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Apply one Adam step to the rows."""
        state = self.state[table]
        if not state:
            state["first"], state["second"] = torch.zeros_like(table), torch.zeros_like(table)
            # float, because load_state_dict casts it
            state["last"] = torch.zeros(len(table), dtype=table.dtype, device=table.device)
            state["step"] = torch.zeros((), device=table.device)
        beta1, beta2 = group["betas"]
        # of the k steps since the row was touched, Adam itself does the last one's decay
        missed = (state["step"] - state["last"].index_select(0, rows)).unsqueeze(1)
        values = self.gather("values", table, rows)
        first, second = (self.gather(name, state[name], rows) for name in ("first", "second"))
        # beta^missed; exp is several times faster than pow
        first.mul_((missed * math.log(beta1)).exp_())
        second.mul_((missed * math.log(beta2)).exp_())
        adam(
            [values],
            [gradient],
            [first],
            [second],
            [],
            [state["step"]],
            fused=table.device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        for part, moved in ((table, values), (state["first"], first), (state["second"], second)):
            part.index_copy_(0, rows, moved)
        state["last"].index_fill_(0, rows, float(state["step"]))

    def gather(self, name: str, part: Tensor, rows: Tensor) -> Tensor:
        """Return `part[rows]` [n, d] in memory that the next step uses again."""
        key = (id(part), name)
        known = self.room.get(key)
        if known is None or len(known) < len(rows):
            self.room[key] = known = part.new_empty(len(rows) + len(rows) // 4, *part.shape[1:])
        return torch.index_select(part, 0, rows, out=known[: len(rows)])


class RowwiseAdagrad(TouchedRows):
    """Adagrad with one accumulator a row: G += mean of g^2, row -= lr g / (sqrt(G) + eps).

    Its state is 1/d of the table; the rule is the "exact row-wise Adagrad" of production recommenders.
    """

    def __init__(self, tables: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, eps: float = 1e-8) -> None:
        super().__init__(tables, {"lr": lr, "eps": eps})

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Apply one row-wise Adagrad step to the rows."""
        state = self.state[table]
        if not state:
            state["sum"] = torch.zeros(len(table), dtype=table.dtype, device=table.device)
        total = state["sum"].index_select(0, rows).add_(gradient.square().mean(dim=1))
        state["sum"].index_copy_(0, rows, total)
        move(table, rows, gradient / total.sqrt_().add_(group["eps"]).unsqueeze(1), -group["lr"])
