"""Which parts go: the least valued ones, until what is left costs what it may.

Units of a block leave in steps of `multiple`, so that kept counts are multiples of it; the best group of heads and the
best `multiple` units of every block always stay. Within a block the order is that of the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lessen.errors import BudgetError
from lessen.pruning.choice import Choice
from lessen.pruning.costs import Costs, Measure
from lessen.pruning.layout import Layer, Layout

Kind = Literal["group", "unit"]
NAMES: dict[Measure, str] = {"macs": "multiply-adds", "parameters": "parameters"}


@dataclass(frozen=True)
class Values:
    """How much each part is worth, higher is better, by path of the block; a block that is not named stays whole."""

    heads: Mapping[str, Tensor]
    """[groups]"""
    units: Mapping[str, Tensor]
    """[hidden]"""


@dataclass(frozen=True)
class Atom:
    """What leaves at once."""

    layer: Layer
    kind: Kind
    members: Tensor
    value: float
    cost: float


def fit_budget(
    costs: Costs, values: Values, limit: float, measure: Measure, multiple: int, *, by_cost: bool, start: Choice
) -> Choice:
    """Return the choice that is worth the most, about, among those that cost at most `limit`.

    Args:
        by_cost: rank by value per cost; else by value alone, for values that are odds of being kept.
        start: what is decided already (blocks, width).

    Raises:
        BudgetError: even the least that each block must keep costs more; says how much that is.
    """
    atoms = _atoms(costs, values, measure, multiple, start)
    atoms.sort(key=lambda atom: atom.value / atom.cost if by_cost else atom.value / len(atom.members))
    heads = {path: torch.ones(len(v), dtype=torch.bool) for path, v in values.heads.items()}
    units = {path: torch.ones(len(v), dtype=torch.bool) for path, v in values.units.items()}
    left = costs.total(measure, start)
    gone: list[Atom] = []
    for atom in atoms:
        if left <= limit:
            break
        gone.append(atom)
        left -= atom.cost
    if left > limit:
        raise _too_small(costs, left, limit, measure, multiple)
    for atom in _without_slack(gone, limit - left):
        (heads if atom.kind == "group" else units)[atom.layer.path][atom.members] = False
    return Choice(heads, units, start.layers, start.width)


def _without_slack(gone: list[Atom], slack: float) -> list[Atom]:
    """Return what goes after the best that still fits has come back, in each block from the best on."""
    stays: set[int] = set()
    closed: set[tuple[str, str]] = set()
    for number, atom in reversed(list(enumerate(gone))):
        place = (atom.layer.path, atom.kind)
        if place not in closed and atom.cost <= slack:
            stays.add(number)
            slack -= atom.cost
        else:
            closed.add(place)
    return [atom for number, atom in enumerate(gone) if number not in stays]


def fit_evenly(
    costs: Costs, values: Values, limit: float, measure: Measure, multiple: int, start: Choice
) -> Choice:  # fmt: skip
    """Return the same with equal counts in all blocks of a stack: each number of groups is tried with its units.

    What is worth most wins, by the share of all value that stays in heads plus that in units.

    Raises:
        BudgetError: as `fit_budget`; or blocks differ in their counts already.
    """
    groups, hidden = _common(costs.layout)
    best: tuple[float, Choice] | None = None
    least = float("inf")
    for kept in range(groups, 0, -1):
        if values.heads == {} and kept < groups:
            break
        counts = range(hidden, 0, -1) if multiple == 1 else [hidden, *range(hidden - hidden % multiple, 0, -multiple)]
        for units in counts:
            choice = evenly(values, kept, units, start)
            cost = costs.total(measure, choice)
            least = min(least, cost)
            if cost <= limit:
                worth = _worth(values, choice)
                if best is None or worth > best[0]:
                    best = worth, choice
                break
    if best is None:
        raise _too_small(costs, least, limit, measure, multiple)
    return best[1]


def evenly(values: Values, groups: int | None, units: int | None, start: Choice) -> Choice:
    """Return the best `groups` and `units` of every block; None keeps all."""
    heads = {} if groups is None else {path: _top(value, groups) for path, value in values.heads.items()}
    return Choice(
        heads,
        {} if units is None else {path: _top(value, units) for path, value in values.units.items()},
        start.layers,
        start.width,
    )


def by_shares(values: Values, heads: float | None, units: float | None, multiple: int, start: Choice) -> Choice:
    """Return the best share of heads and of units of every block, at least half a part of each, rounded.

    Raises:
        BudgetError: a share would leave a block without heads or units.
    """
    kept: dict[str, dict[str, Tensor]] = {"heads": {}, "units": {}}
    for what, share, every, step in (("heads", heads, values.heads, 1), ("units", units, values.units, multiple)):
        if share is not None:
            kept[what] = {path: _top(v, _part(share, len(v), step, path, what)) for path, v in every.items()}
    return Choice(kept["heads"], kept["units"], start.layers, start.width)


def _part(share: float, whole: int, multiple: int, path: str, what: str) -> int:
    step = multiple if whole > multiple else 1
    count = int(share * whole / step + 0.5) * step
    if count == 0:
        raise BudgetError(
            f"{what} = {share:g} would leave {path} without any of its {whole}; the least that keeps some is "
            f"{0.5 * step / whole:.3g}",
            0.5 * step / whole,
        )
    return min(count, whole)


def _top(value: Tensor, count: int) -> Tensor:
    """Mark the best `count`; of equal ones the first."""
    kept = torch.zeros(len(value), dtype=torch.bool)
    kept[torch.argsort(-value.double(), stable=True)[:count]] = True
    return kept


def _worth(values: Values, choice: Choice) -> float:
    """Return the share of value kept in heads plus that in units, values shifted so that the least is 0."""
    total = 0.0
    for every, kept in ((values.heads, choice.heads), (values.units, choice.units)):
        if every:
            lowest = min(float(v.min()) for v in every.values())
            whole = sum(float((v.double() - lowest).sum()) for v in every.values())
            left = sum(float((v.double() - lowest)[kept[path]].sum()) for path, v in every.items())
            total += left / whole if whole else 1.0
    return total


def _atoms(costs: Costs, values: Values, measure: Measure, multiple: int, start: Choice) -> list[Atom]:
    atoms: list[Atom] = []
    for layer in costs.layout.layers:
        if layer.stack in start.layers and not bool(start.layers[layer.stack][layer.block.index]):
            continue
        for kind, every, step in (("group", values.heads, 1), ("unit", values.units, multiple)):
            if layer.path not in every:
                continue
            value = every[layer.path].double()
            one = costs.atom(measure, layer, kind, start)  # type: ignore[arg-type]
            order = torch.argsort(-value, stable=True)
            for first in range(step, len(order), step):
                members = order[first : first + step]
                atoms.append(Atom(layer, kind, members, float(value[members].sum()), one * len(members)))  # type: ignore[arg-type]
    return atoms


def _common(layout: Layout) -> tuple[int, int]:
    """Return the groups and units that all blocks have. Raises BudgetError where they differ."""
    groups, hidden = ({getattr(layer, name) for layer in layout.layers} for name in ("groups", "hidden"))
    if len(groups) > 1 or len(hidden) > 1:
        raise BudgetError(
            f"blocks of {type(layout.model).__name__} have {sorted(groups)} heads and {sorted(hidden)} units: equal "
            "counts for all need blocks that are alike; set uniform: false"
        )
    return max(groups.pop(), 1), max(hidden.pop(), 1)


def _too_small(costs: Costs, least: float, limit: float, measure: Measure, multiple: int) -> BudgetError:
    whole = costs.total(measure)
    return BudgetError(
        f"{limit / whole:.3g} of the {NAMES[measure]} cannot be reached: with one head (or group of heads) and "
        f"{multiple} units in every block {least / whole:.3g} is left; drop blocks or width too, or ask for more",
        least / whole,
    )
