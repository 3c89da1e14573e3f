"""The common size knob: reach a share of the bytes that all embedding tables of the model take.

Counted are parameters and buffers of every table: rows, codes, scales, maps, codebooks, and the tables that a method
leaves alone (first-order weights among them). The share is hit within `TOLERANCE`, or BudgetError names the nearest
that can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import nn

from lessen.errors import BudgetError
from lessen.methods.sites import TABLES, Site, module_bytes
from lessen.stored.tables.embedding import StoredEmbedding

TOLERANCE = 0.02
Made = TypeVar("Made")
Weigh = Callable[[int, Any], int]


def share_field(replaces: str) -> Any:
    """Return the declaration of the knob `share`; `replaces` says which knobs it makes superfluous."""
    text = f"share of the bytes of all tables to reach, within 2 %; solved for, in place of {replaces}"
    return Field(None, gt=0, lt=1, description=text)


def tables_of(model: nn.Module) -> list[nn.Module]:
    """Return every table of a model once, stored ones whole (their inner tables are part of them)."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if id(module) in inside:
            continue
        if isinstance(module, StoredEmbedding):
            inside.update(id(inner) for inner in module.modules())
        if isinstance(module, (*TABLES, StoredEmbedding)):
            found.append(module)
    return found


def targets(model: nn.Module, sites: Sequence[Site], share: float) -> list[int]:
    """Return the bytes that each site may take so that all tables together take `share` of what they take now.

    Sites shrink by one factor; what the other tables take is subtracted first. A site may take one byte where those
    alone take more than the share: what is made then is the smallest there is, which `check_share` names.
    """
    total = sum(module_bytes(table) for table in tables_of(model))
    own = [module_bytes(site.module) for site in sites]
    left = share * total - (total - sum(own))
    return [max(1, int(left * size / sum(own))) for size in own]


def share_out(
    sizes: Sequence[int], aims: Sequence[int], slack: float, make: Callable[[int, int], Made], weigh: Weigh
) -> list[Made]:
    """Return what `make(number, aim)` gives for each site, so that together they take what they may.

    The sites are made again where the sum misses by more than `slack`, because a table cannot get as small or as large
    as its part: those that missed most come first, and each of the others gets its part of what is left.

    Args:
        sizes: bytes of each site now; aims: bytes that each may take.
        weigh: returns the bytes that site `number` takes with what was made for it.
    """
    made = [make(number, aim) for number, aim in enumerate(aims)]
    taken = [weigh(number, one) for number, one in enumerate(made)]
    if len(sizes) == 1 or abs(sum(taken) - sum(aims)) <= slack:
        return made
    again, left, rest = list(made), sum(aims), sum(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: -abs(taken[number] - aims[number])):
        again[number] = make(number, max(1, left * sizes[number] // rest))
        left -= weigh(number, again[number])
        rest -= sizes[number]
    return again if abs(left) < abs(sum(taken) - sum(aims)) else made


def size_of(build: Callable[[], nn.Module]) -> int:
    """Return the bytes of the module that `build` makes, without allocating it."""
    with torch.device("meta"):
        return module_bytes(build())


def solve(size: Callable[[int], int], low: int, high: int, target: int) -> int:
    """Return the knob in [low, high] whose size comes nearest to `target`; `size` must not fall as the knob rises."""
    while high - low > 1:
        middle = (low + high) // 2
        if size(middle) <= target:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda knob: abs(size(knob) - target))


def nearest_choice(sizes: Iterable[tuple[Any, int]], target: int) -> Any:
    """Return the choice whose size comes nearest to `target`."""
    return min(sizes, key=lambda item: abs(item[1] - target))[0]


def check_share(after: int, before: int, share: float, method: str) -> float:
    """Return the share reached, of bytes of all tables after and before.

    Raises:
        BudgetError: it differs from `share` by more than `TOLERANCE` of it.
    """
    reached = after / before
    if abs(reached - share) > TOLERANCE * share:
        raise BudgetError(
            f"{method} cannot reach the share {share:g} of these tables; the nearest it can reach is {reached:.4g}",
            reached,
        )
    return reached


def table_bytes(model: nn.Module) -> int:
    """Return the bytes of all tables of a model."""
    return sum(module_bytes(table) for table in tables_of(model))
