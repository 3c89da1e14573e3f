"""Optimisers for groups of parameters, the L2 penalty on tables, and clipping over dense and sparse gradients alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.stored.tables.embedding import StoredEmbedding
from lessen.train.settings import FitSettings, ParameterGroup
from lessen.train.tables import LazyAdam, RowwiseAdagrad, touched

Table = nn.Embedding | nn.EmbeddingBag


def trainable_tables(model: nn.Module) -> list[Table]:
    """Return the embedding modules with trainable weights; a weight that several share is listed once."""
    tables = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.weight.requires_grad]
    return list({id(table.weight): table for table in tables}.values())


def let_sparse(table: Table) -> Callable[[], None]:
    """Let a table give sparse gradients; returns what undoes that.

    torch takes padding out of a sparse gradient by copying it. The one row of padding is set to zero instead where the
    table's forward is torch's own, after equal rows are summed.
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


def build_optimizers(
    model: nn.Module, settings: FitSettings, groups: Sequence[ParameterGroup] | None = None
) -> list[torch.optim.Optimizer]:
    """Return one optimiser for each rule that parameters move by; tables that update sparsely have their own.

    Every parameter group of an optimiser carries its `factor` on the learning rate. `muon` is for the matrices that
    `hidden_matrices` names, or for all 2-D parameters of a group that asks for it; what is left goes to AdamW.

    Args:
        groups: who trains, and how; none: all parameters that require gradients, as the settings say.

    Raises:
        ConfigError: muon has no matrix to move.
    """
    if groups is None:
        groups = [ParameterGroup([p for p in model.parameters() if p.requires_grad])]
    tables = {} if settings.table_updates == "dense" else {id(t.weight): t.weight for t in trainable_tables(model)}
    dense: dict[str, list[dict[str, Any]]] = {}
    sparse: list[dict[str, Any]] = []
    for group in groups:
        rows = [p for p in group.parameters if id(p) in tables]
        if rows:
            sparse.append({"params": rows, "factor": group.factor})
        rest = [p for p in group.parameters if id(p) not in tables]
        for rule, parameters in _by_rule(model, rest, group.optimizer or settings.optimizer, group.optimizer):
            decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
            part = {"params": parameters, "weight_decay": decay, "factor": group.factor}
            dense.setdefault(rule, []).append(part)
    if settings.optimizer == "muon" and "muon" not in dense:
        raise ConfigError("muon moves matrices of hidden layers, and none of those trains here; choose adamw")
    optimizers = [_dense(rule, parts, settings) for rule, parts in dense.items()]
    if not sparse:
        return optimizers
    if settings.table_updates == "lazy-adam":
        return [*optimizers, LazyAdam(sparse, lr=settings.learning_rate)]
    return [*optimizers, RowwiseAdagrad(sparse, lr=settings.learning_rate)]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that Muon is made for: of linear layers, but not the last one and none shared with a table."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    tables = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    weights = [linear.weight for linear in linears[:-1]]
    return [w for w in weights if isinstance(w, nn.Parameter) and id(w) not in tables]


def _by_rule(
    model: nn.Module, parameters: Sequence[nn.Parameter], rule: str, asked: str | None
) -> list[tuple[str, list[nn.Parameter]]]:
    """Divide the parameters of a group by the optimiser that moves them, empty parts left out."""
    if rule != "muon":
        return [(rule, list(parameters))] if parameters else []
    hidden = {id(p) for p in (parameters if asked else hidden_matrices(model)) if p.ndim == 2}
    parts = [
        ("muon", [p for p in parameters if id(p) in hidden]),
        ("adamw", [p for p in parameters if id(p) not in hidden]),
    ]
    return [(name, part) for name, part in parts if part]


def _dense(rule: str, groups: list[dict[str, Any]], settings: FitSettings) -> torch.optim.Optimizer:
    if rule == "muon":  # its update has the root mean square of AdamW's, so that one learning rate serves both
        return torch.optim.Muon(groups, lr=settings.learning_rate, adjust_lr_fn="match_rms_adamw")
    # one fused kernel walks all parameters when their types allow
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    options: dict[str, Any] = {"lr": settings.learning_rate, "fused": fused}
    if rule == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **options)
    make = torch.optim.Adam if rule == "adam" else torch.optim.AdamW
    return make(groups, betas=settings.betas, **options)


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], value: float) -> None:
    """Set the learning rate of all parameters, times the factor of their group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value * group["factor"]


class TableDecay:
    """lambda/2 * ||V||^2 over every row of every trainable table, rows the batch never touched included.

    The gradient of the penalty is lambda * V, so it is added to the gradient directly: no graph is built and no
    table is squared. The rows of the batch decay and no others where a gradient is sparse. Factors of vectors (the
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
def make_dense(parameters: Iterable[Tensor]) -> None:
    """Make sparse gradients dense, wherever in a model they come from: rules for dense updates take no others."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


def clip_norm(parameters: Iterable[Tensor], largest: float) -> None:
    """Scale all gradients so that their joint 2-norm is at most `largest`; sparse ones by their summed rows."""
    values = [touched(p)[1] if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
    if not values:
        return
    scale = largest / (nn.utils.get_total_norm(values) + 1e-6)
    if not bool(scale >= 1.0):  # also where the norm is not a number
        for value in values:
            value.mul_(scale.to(value.device))
