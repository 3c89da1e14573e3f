"""A module whose steps are all linear in what it is told is one matrix, and a function by element after them stays.

    relu(u + step * (u D^T - u D^T D) - step * penalty)        relu(u M + m)

Three products with one dictionary, as in a block of CRATE (Yu et al. 2023, arXiv 2306.01129), are one: two thirds of
its multiply-adds are gone. `chains` merges layers that are modules; this reads what a forward computes by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.folding.flow import PASSING, Flow, Step, fixed_values
from lessen.folding.fold import Fold, Found, put, watched

AFTER: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "silu": nn.SiLU}
"""Functions by element that may stand at the end."""
ADDING = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__"})
TAKING = frozenset({"sub", "__sub__", "sub_", "__isub__"})
TAKING_FROM = frozenset({"rsub", "__rsub__"})
SCALING = frozenset({"mul", "__mul__", "__rmul__", "mul_", "__imul__"})
DIVIDING = frozenset({"div", "__truediv__", "true_divide", "div_", "__itruediv__"})
CLOSE = 1e-5
"""Difference that a layer in float32 may make; the fold itself is proven more narrowly."""
PRODUCTS = frozenset({"matmul", "__matmul__"})


@dataclass
class Map:
    """Rows x become x A + c: `matrix` A [in, out], `shift` c [out], and the products on the way, with their sizes."""

    matrix: Tensor
    shift: Tensor
    products: frozenset[tuple[int, int]] = frozenset()

    @property
    def cost(self) -> int:
        """Multiply-adds of a row."""
        return sum(size for _step, size in self.products)


def find(flow: Flow) -> Found:
    """Return a fold for each outermost module of several linear steps that is cheaper as one layer."""
    found, inside = Found(), tuple[str, ...]()
    fixed = fixed_values(flow)
    for path, module in flow.modules.items():
        if not path or path.startswith(inside) or flow.calls[path] != 1:
            continue
        seen = _read(flow, path, fixed)
        if seen is None:
            continue
        whole, after = seen
        reason = watched(module) or _obstacle(module, flow.given[path][0], whole, after)
        if reason:
            found.kept[path] = reason
            continue
        found.folds.append(_as_layer(path, whole, after))
        inside = (*inside, f"{path}.")
    return found


def _as_layer(path: str, whole: Map, after: str) -> Fold:
    def apply(model: nn.Module) -> None:
        width, out = whole.matrix.shape
        layer = nn.Linear(
            width, out, bias=bool(whole.shift.any()), device=whole.matrix.device, dtype=whole.matrix.dtype
        )
        with torch.no_grad():
            layer.weight.copy_(whole.matrix.t())
            if layer.bias is not None:
                layer.bias.copy_(whole.shift)
        put(model, path, nn.Sequential(layer, AFTER[after]()) if after else layer)

    return Fold("linear steps", path, "", apply)


@torch.no_grad()
def _obstacle(module: nn.Module, given: Tensor, whole: Map, after: str) -> str:
    """Return why one layer would not do; a number that a forward takes from the form of its input shows here."""
    if whole.matrix.numel() >= whole.cost:
        return f"one layer would take {whole.matrix.numel():,} multiply-adds a row, its steps take {whole.cost:,}"
    draw = torch.Generator(given.device).manual_seed(0)
    for sides in ([1] * (given.dim() - 1), [3 + axis for axis in range(given.dim() - 1)]):
        x = torch.randn(*sides, given.shape[-1], generator=draw, dtype=given.dtype, device=given.device)
        wanted = x @ whole.matrix + whole.shift
        wanted = AFTER[after]()(wanted) if after else wanted
        try:
            found = module(x)
        except Exception:  # a user's forward that insists on the sides it saw
            return "does not answer inputs of other sides"
        if found.shape != wanted.shape or float((found - wanted).abs().max()) > CLOSE * float(wanted.abs().max() + 1):
            return "answers otherwise to inputs of other sides"
    return ""


def _read(flow: Flow, path: str, fixed: set[int]) -> tuple[Map, str] | None:
    """Return the map that a module is and the function after it, or None if it is something else."""
    steps = flow.inside(path)
    given, answer = flow.given[path], flow.answers.get(path)
    if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(answer, Tensor) or given[0].dim() < 2:
        return None
    if sum(step.name in PRODUCTS or step.name == "linear" for step in steps) < 2 or _shares(flow, path, steps):
        return None
    x = given[0]
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    maps = {flow.number_of(x): Map(one, torch.zeros_like(one[0]))}
    last = flow.number_of(answer)
    if last < 0 or -1 in maps:
        return None
    for step in steps:
        if all(value in fixed for value in step.reads):
            continue
        if step.name in AFTER and step.makes == (last,) and step.reads[0] in maps and len(step.reads) == 1:
            return maps[step.reads[0]], step.name
        made = _stepped(flow, step, maps)
        if made is None or len(step.makes) != 1:
            return None
        maps[step.makes[0]] = made
    return (maps[last], "") if last in maps else None


def _shares(flow: Flow, path: str, steps: list[Step]) -> bool:
    """Tell whether something outside reads the module's weights, or it reads those of others."""
    own = set(map(id, steps))
    values = {value for step in steps for value in step.reads if value in flow.held}
    outside = any(id(user) not in own for value in values for user in flow.users[value])
    return outside or any(not flow.held[value].startswith(f"{path}.") for value in values)


@torch.no_grad()
def _stepped(flow: Flow, step: Step, maps: dict[int, Map]) -> Map | None:
    """Return what a step makes of maps and fixed values, or None where it is not linear."""
    if step.name in PASSING:
        return maps.get(step.reads[0])
    if step.name == "linear":
        return _linear(flow, step, maps)
    arguments = _named(step, "input", "other")
    if arguments is None:  # scaled sums say their scale in a third
        return None
    first, second = (_side(flow, arguments.get(name), maps) for name in ("input", "other"))
    if step.name in TAKING_FROM:
        return _sum(second, first, -1.0)
    if step.name in ADDING or step.name in TAKING:
        return _sum(first, second, -1.0 if step.name in TAKING else 1.0)
    if step.name in PRODUCTS and isinstance(first, Map) and isinstance(second, Tensor) and second.dim() == 2:
        return Map(first.matrix @ second, first.shift @ second, first.products | {(step.index, second.numel())})
    if step.name in SCALING:
        first, second = (first, second) if isinstance(first, Map) else (second, first)
        return _scaled(first, second)
    if step.name in DIVIDING and isinstance(first, Map) and not isinstance(second, Map) and second is not None:
        return _scaled(first, 1.0 / second)
    return None


def _named(step: Step, *names: str) -> dict[str, Any] | None:
    """Return what a step was told, by name, or None if it was told more than `names`."""
    found = {**dict(zip(names, step.arguments, strict=False)), **step.keywords}
    return found if len(step.arguments) <= len(names) and set(found) <= set(names) else None


def _side(flow: Flow, value: Any, maps: dict[int, Map]) -> Map | Tensor | float | None:
    if isinstance(value, Tensor):
        return maps.get(flow.number_of(value), value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _linear(flow: Flow, step: Step, maps: dict[int, Map]) -> Map | None:
    arguments = _named(step, "input", "weight", "bias")
    if arguments is None:
        return None
    known, matrix, bias = (_side(flow, arguments.get(name), maps) for name in ("input", "weight", "bias"))
    if not isinstance(known, Map) or not isinstance(matrix, Tensor) or matrix.dim() != 2 or isinstance(bias, Map):
        return None
    shift = F.linear(known.shift, matrix, bias if isinstance(bias, Tensor) else None)
    return Map(F.linear(known.matrix, matrix), shift, known.products | {(step.index, matrix.numel())})


def _sum(first: Any, second: Any, sign: float) -> Map | None:
    if isinstance(first, Map) and isinstance(second, Map):
        if first.matrix.shape != second.matrix.shape:
            return None
        products = first.products | second.products
        return Map(first.matrix + sign * second.matrix, first.shift + sign * second.shift, products)
    if isinstance(first, Map) and _of_row(second, first):
        return Map(first.matrix, first.shift + sign * second, first.products)
    if isinstance(second, Map) and _of_row(first, second):
        return Map(sign * second.matrix, first + sign * second.shift, second.products)
    return None


def _scaled(known: Any, factor: Any) -> Map | None:
    if not isinstance(known, Map) or not _of_row(factor, known):
        return None
    return Map(known.matrix * factor, known.shift * factor, known.products)


def _of_row(value: Any, known: Map) -> bool:
    """Tell whether a fixed value does the same to every row."""
    if isinstance(value, Tensor):
        return value.numel() == 1 or value.shape == known.shift.shape
    return isinstance(value, float)
