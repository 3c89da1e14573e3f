"""Hidden units that say nothing of their own: never varying, never read, or doubles of another.

W2 f(W1 x + b1) + b2 with f by element: a unit whose row of W1 is zero answers f(b) always, which joins b2; one whose
column of W2 is zero is not read; of units with equal rows one stays, with the sum of their columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lessen.folding.flow import Call, Flow, Step, mapped
from lessen.folding.fold import Fold, Found, layer_of, put
from lessen.folding.norms import pads, set_bias

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BY_ELEMENT = frozenset(
    {
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "celu_", "gelu",
        "silu", "mish", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardswish", "hardsigmoid", "hardtanh", "softplus",
        "softsign", "logsigmoid",
    }
)  # fmt: skip
Activation = Callable[[Tensor], Tensor]


def find(flow: Flow) -> Found:
    """Return a fold for each pair of layers between which some unit can go."""
    found, taken = Found(), set[str]()
    for path, module in flow.modules.items():
        if not isinstance(module, LAYERS) or layer_of(flow, flow.step_of(path), LAYERS) is None:
            continue
        pair = _before(flow, path)
        if pair is None or {pair[0], path} & taken:
            continue
        before, activation = pair
        with torch.no_grad():
            plan = spare(flow.modules[before], module, activation)
        if plan is None:
            continue
        taken |= {before, path}
        found.folds.append(_without(before, path, activation, int((~plan[0]).sum())))
    return found


def _before(flow: Flow, path: str) -> tuple[str, Activation] | None:
    """Return the layer whose units a layer alone reads, and the function between them."""
    last, module = flow.step_of(path), flow.modules[path]
    functions: list[Step] = []
    value = last.reads[0] if last is not None and last.reads else -1
    while (maker := flow.source(value)) is not None and maker.name in BY_ELEMENT and len(maker.reads) == 1:
        functions.append(maker)
        value = maker.reads[0]
    before = layer_of(flow, maker, (type(module),))
    grouped = before is not None and {getattr(flow.modules[name], "groups", 1) for name in (before, path)} != {1}
    if before is None or grouped:
        return None

    def activation(values: Tensor) -> Tensor:
        for step in reversed(functions):
            arguments, keywords = _told(step, values.clone())
            values = step.function(*arguments, **keywords)
        return values

    return before, activation


def _told(step: Step, values: Tensor) -> Call:
    """Return what a step was told, with `values` for the one tensor, which may come by name."""
    made: Call = mapped((step.arguments, dict(step.keywords)), lambda _leaf: values)
    return made


def spare(first: Any, second: Any, activation: Activation) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return which units stay [units], the columns of those that go by whose they join [units], and constants [units].

    None where all units are needed. `joins` is a unit's own number unless it is a double of another; a unit that goes
    and joins none gives its constant, 0 if it is not read.
    """
    rows = first.weight.detach().flatten(1)
    columns = second.weight.detach().transpose(0, 1).flatten(1)
    units = len(rows)
    bias = rows.new_zeros(units) if first.bias is None else first.bias.detach()
    answers = activation(bias)
    still, unread = ~rows.any(1), ~columns.any(1)
    if pads(second):
        still &= answers == 0  # the rim of zeros is no constant
    still &= torch.isfinite(answers)
    go = still | unread
    _, group = torch.unique(torch.cat([rows, bias[:, None]], 1), dim=0, return_inverse=True)
    numbers = torch.arange(units, device=rows.device)
    candidates = torch.where(go, units, numbers)
    leader = torch.full((units,), units, device=rows.device).scatter_reduce(0, group, candidates, "amin")[group]
    joins = torch.where(go, numbers, leader)
    stays = ~go & (joins == numbers)
    if bool(stays.all()) or not bool(stays.any()):
        return None
    return stays, joins, torch.where(still, answers, torch.zeros_like(answers))


def _without(before: str, path: str, activation: Activation, count: int) -> Fold:
    def apply(model: nn.Module) -> None:
        first: Any = model.get_submodule(before)
        second: Any = model.get_submodule(path)
        with torch.no_grad():
            plan = spare(first, second, activation)
            if plan is None:
                return
            stays, joins, constants = plan
            summed = torch.zeros_like(second.weight).index_add_(1, joins, second.weight.detach())
            gone = ~stays & (joins == torch.arange(len(stays), device=joins.device))
            taps = second.weight.detach().flatten(2).sum(-1) if second.weight.dim() > 2 else second.weight.detach()
            more = taps[:, gone] @ constants[gone]
            put(model, before, _kept(first, 0, first.weight[stays], "out"))
            narrow = _kept(second, 1, summed[:, stays], "in")
            if second.bias is not None or bool(more.any()):
                set_bias(narrow, more if second.bias is None else second.bias + more)
            put(model, path, narrow)
            if first.bias is not None:
                set_bias(model.get_submodule(before), first.bias[stays])

    return Fold(f"{count} units", before, path, apply)


def _kept(layer: Any, axis: int, weight: Tensor, side: str) -> nn.Module:
    made: nn.Module = copy.deepcopy(layer)
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=layer.weight.requires_grad)
    setattr(made, f"{side}_{'features' if isinstance(layer, nn.Linear) else 'channels'}", weight.shape[axis])
    return made
