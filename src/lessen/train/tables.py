"""Table updates whose cost is what a batch touches, not what the table holds: lazy Adam and row-wise Adagrad.

Both take the sparse gradients that `nn.Embedding(sparse=True)` makes: row numbers and one gradient row for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


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
        table.grad = gradient = gradient.coalesce()
    return gradient._indices()[0], gradient._values()


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
        self, tables: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(tables, {"lr": lr, "betas": betas, "eps": eps})

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Apply one Adam step to the rows."""
        state = self.state[table]
        if not state:
            # both moments side by side: one gather and one scatter a step; last is float as load_state_dict casts it
            state["moments"] = torch.zeros(len(table), 2 * table.shape[1], dtype=table.dtype, device=table.device)
            state["last"] = torch.zeros(len(table), dtype=table.dtype, device=table.device)
            state["step"] = torch.zeros(())
        state["step"] += 1
        step, width = float(state["step"]), table.shape[1]
        beta1, beta2 = group["betas"]
        missed = (step - state["last"].index_select(0, rows)).unsqueeze(1)
        moments = state["moments"].index_select(0, rows)
        first, second = moments[:, :width], moments[:, width:]
        first.mul_(torch.pow(beta1, missed)).add_(gradient, alpha=1 - beta1)
        second.mul_(torch.pow(beta2, missed)).addcmul_(gradient, gradient, value=1 - beta2)
        state["moments"].index_copy_(0, rows, moments)
        state["last"].index_fill_(0, rows, step)
        denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        move(table, rows, first / denominator, -group["lr"] / (1 - beta1**step))


class RowwiseAdagrad(TouchedRows):
    """Adagrad with one accumulator a row: G += mean of g^2, row -= lr g / (sqrt(G) + eps).

    Its state is 1/d of the table; the rule is the "exact row-wise Adagrad" of production recommenders.
    """

    def __init__(self, tables: Iterable[Tensor], lr: float, eps: float = 1e-8) -> None:
        super().__init__(tables, {"lr": lr, "eps": eps})

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Apply one row-wise Adagrad step to the rows."""
        state = self.state[table]
        if not state:
            state["sum"] = torch.zeros(len(table), dtype=table.dtype, device=table.device)
        total = state["sum"].index_select(0, rows).add_(gradient.square().mean(dim=1))
        state["sum"].index_copy_(0, rows, total)
        move(table, rows, gradient / total.sqrt_().add_(group["eps"]).unsqueeze(1), -group["lr"])
