"""Optimisers by name, the L2 penalty on embedding tables, and clipping over dense and sparse gradients alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored.tables.embedding import StoredEmbedding
from lessen.train.settings import FitSettings
from lessen.train.tables import LazyAdam, RowwiseAdagrad, touched

Table = nn.Embedding | nn.EmbeddingBag


def trainable_tables(model: nn.Module) -> list[Table]:
    """Return the embedding modules with trainable weights; a weight that several share is listed once."""
    tables = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.weight.requires_grad]
    return list({id(table.weight): table for table in tables}.values())


def let_sparse(table: Table) -> Callable[[], None]:
    """Let a table give sparse gradients; returns what undoes that.

    torch takes padding out of a sparse gradient by copying it. Where the table's forward is torch's own, the one row of
    padding is set to zero instead, after equal rows are summed.
    """
    sparse, padding = table.sparse, table.padding_idx
    table.sparse = True
    if padding is None or type(table).forward is not nn.Embedding.forward:
        return lambda: setattr(table, "sparse", sparse)
    table.padding_idx = None

    def settle(weight: Tensor) -> None:
        rows, values = touched(weight)
        values[rows == padding] = 0.0

    handle = table.weight.register_post_accumulate_grad_hook(settle)  # type: ignore[no-untyped-call]

    def undo() -> None:
        table.sparse, table.padding_idx = sparse, padding
        handle.remove()

    return undo


def build_optimizers(model: nn.Module, settings: FitSettings) -> list[torch.optim.Optimizer]:
    """Return one optimiser for all parameters, or one for tables and one for the rest when tables update sparsely."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.table_updates == "dense":
        return [_dense(parameters, settings)]
    tables = [table.weight for table in trainable_tables(model)]
    known = {id(weight) for weight in tables}
    rest = [p for p in parameters if id(p) not in known]
    sparse = LazyAdam if settings.table_updates == "lazy-adam" else RowwiseAdagrad
    optimizers = [_dense(rest, settings)] if rest else []
    return [*optimizers, sparse(tables, lr=settings.learning_rate)] if tables else optimizers


def _dense(parameters: Sequence[nn.Parameter], settings: FitSettings) -> torch.optim.Optimizer:
    # one fused kernel walks all parameters when their types allow
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": fused}
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, **options)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    return torch.optim.SGD(parameters, momentum=0.9, **options)


def learning_rate(optimizers: Sequence[torch.optim.Optimizer]) -> float:
    """Return the learning rate, equal for all parameters."""
    return float(optimizers[0].param_groups[0]["lr"])


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], value: float) -> None:
    """Set the learning rate of all parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value


class TableDecay:
    """lambda/2 * ||V||^2 over every row of every trainable table, rows the batch never touched included.

    The gradient of the penalty is lambda * V, so it is added to the gradient directly: no graph is built and no
    table is squared. Where a gradient is sparse, the rows of the batch decay and no others. Factors of vectors (the
    cores of a tensor train) do not decay: what pulls each factor to zero holds their product there.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        self.strength = strength
        owners = [module for module in model.modules() if isinstance(module, StoredEmbedding)]
        factors = {id(owner.get_submodule(name)) for owner in owners for name in owner.factors}
        self.tables = [table for table in trainable_tables(model) if id(table) not in factors]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add lambda * V to the gradient of each table."""
        if self.strength == 0.0:
            return
        for table in self.tables:
            weight = table.weight
            if weight.grad is not None and weight.grad.is_sparse:
                rows, gradient = touched(weight)
                gradient.add_(weight.index_select(0, rows), alpha=self.strength)
            elif weight.grad is not None:
                weight.grad.add_(weight, alpha=self.strength)
            elif not table.sparse:
                weight.grad = weight.detach() * self.strength


@torch.no_grad()
def clip_norm(parameters: Iterable[Tensor], largest: float) -> None:
    """Scale all gradients so that their joint 2-norm is at most `largest`; sparse ones by their summed rows."""
    values = [touched(p)[1] if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
    if not values:
        return
    scale = largest / (nn.utils.get_total_norm(values) + 1e-6)
    if not bool(scale >= 1.0):  # also where the norm is not a number
        for value in values:
            value.mul_(scale.to(value.device))
