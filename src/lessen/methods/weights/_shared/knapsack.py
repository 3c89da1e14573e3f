"""Which width each layer takes within a budget of bytes: the least harm there is, proven.

    layer 1: (bytes, harm) at 2, 3, 4 ... bits
    layer 2: ...

The multiple-choice knapsack. Its relaxation puts a price on a byte; what a choice costs beyond the cheapest of its
layer at that price is what any solution with it loses at least (Sinha and Zoltners, Operations Research 27, 1979).
Choices that lose more than a solution at hand is above the relaxation are out, and mostly a handful of layers is left
open. Those are gone through one by one, with all sums of bytes and harm that no other beats in both and that the same
bound lets live (Pisinger, European Journal of Operational Research 83, 1995).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lessen.errors import BudgetError

Choice = tuple[int, float]
"""Bytes and harm of a layer at one width."""
_NEAR = 1e-12
"""Share of the harm below which two sums count as equal."""
_SHARES = (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0)
"""Of the distance between the relaxation and the solution at hand: how far from the relaxation is searched, in turn."""


def allocate(layers: Sequence[Sequence[Choice]], budget: int, what: str) -> list[int]:
    """Return which choice each layer takes: of all that fit into `budget` bytes, those whose harms sum to the least.

    Raises:
        BudgetError: not even the smallest choices fit; names their bytes.
    """
    sizes = [np.array([size for size, _ in choices], np.int64) for choices in layers]
    harms = [np.array([harm for _, harm in choices], np.float64) for choices in layers]
    check_fits(int(sum(each.min() for each in sizes)), budget, what)
    if not layers:
        return []
    price = _price(sizes, harms, budget)
    found = _filled(sizes, harms, price, budget)
    best = float(sum(own[pick] for own, pick in zip(harms, found, strict=True)))
    costs = [own + price * size for own, size in zip(harms, sizes, strict=True)]
    bound = sum(float(own.min()) for own in costs) - price * budget
    over = best - bound + _NEAR * max(1.0, abs(best))
    for share in _SHARES:  # what is found within a share of the distance is the best: all that is better lies within it
        open_ = [np.flatnonzero(own - own.min() <= share * over) for own in costs]
        other = _searched(sizes, harms, costs, open_, budget, share * over)
        if other is None:
            continue
        reached = float(sum(own[pick] for own, pick in zip(harms, other, strict=True)))
        if reached - bound <= share * over:
            return other if reached < best else found
    return found


def _price(sizes: list[np.ndarray], harms: list[np.ndarray], budget: int) -> float:
    """Return the harm of a byte at which the relaxed problem fills the budget; 0 where everything fits."""
    spent, steps = 0, []
    for size, harm in zip(sizes, harms, strict=True):
        corners = _corners(size, harm)
        spent += int(size[corners[0]])
        steps += [
            ((harm[one] - harm[two]) / (size[two] - size[one]), int(size[two] - size[one]))
            for one, two in itertools.pairwise(corners)
        ]
    for gain, more in sorted(steps, reverse=True):
        spent += more
        if spent > budget:
            return float(gain)
    return 0.0


def _corners(size: np.ndarray, harm: np.ndarray) -> list[int]:
    """Return the choices on the lower left hull, from the smallest on: each loses less harm a byte than the last."""
    found: list[int] = []
    for one in np.lexsort((harm, size)):
        if found and harm[one] >= harm[found[-1]]:
            continue
        while len(found) > 1 and (harm[found[-2]] - harm[found[-1]]) * (size[one] - size[found[-1]]) <= (
            harm[found[-1]] - harm[one]
        ) * (size[found[-1]] - size[found[-2]]):
            found.pop()
        found.append(int(one))
    return found


def _filled(sizes: list[np.ndarray], harms: list[np.ndarray], price: float, budget: int) -> list[int]:
    """Return choices that fit: the cheapest at the price, the smaller of equals, and then what still helps most."""
    for more in (0.0, 1e-12, 1e-9, 1e-6, np.inf):  # rounding may put a layer on the dear side of the price
        dear = price * (1.0 + more)
        keys = [
            (harm, size) if more == np.inf else (size, harm + dear * size)
            for size, harm in zip(sizes, harms, strict=True)
        ]
        picks = [int(np.lexsort(key)[0]) for key in keys]
        left = budget - int(sum(size[pick] for size, pick in zip(sizes, picks, strict=True)))
        if left >= 0:
            break
    owner = np.repeat(np.arange(len(sizes)), [len(size) for size in sizes])
    number = np.concatenate([np.arange(len(size)) for size in sizes])
    every, all_harms = np.concatenate(sizes), np.concatenate(harms)
    while True:
        now = np.array([[size[p], harm[p]] for size, harm, p in zip(sizes, harms, picks, strict=True)])
        more, less = every - now[owner, 0], now[owner, 1] - all_harms
        helps = np.flatnonzero((more <= left) & (less > 0))
        if not len(helps):
            return picks
        one = helps[np.argmax(less[helps])]
        picks[owner[one]] = int(number[one])
        left -= int(more[one])


def _searched(
    sizes: list[np.ndarray],
    harms: list[np.ndarray],
    costs: list[np.ndarray],
    open_: list[np.ndarray],
    budget: int,
    over: float,
) -> list[int] | None:
    """Return the best of the open choices, None where none is within `over` of the relaxation."""
    picks = [int(choices[0]) for choices in open_]
    free = [at for at, choices in enumerate(open_) if len(choices) > 1]
    left = budget - sum(
        int(size[pick]) for at, (size, pick) in enumerate(zip(sizes, picks, strict=True)) if at not in free
    )
    least = [int(sizes[at][open_[at]].min()) for at in free]
    still = np.concatenate([np.cumsum(least[::-1])[::-1][1:], [0]]) if free else np.zeros(0)
    spent, lost, excess = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for at, rest in zip(free, still, strict=True):
        own = open_[at]
        grown = (spent[:, None] + sizes[at][own][None, :]).ravel()
        sums = (lost[:, None] + harms[at][own][None, :]).ravel()
        above = (excess[:, None] + (costs[at][own] - costs[at].min())[None, :]).ravel()
        fits = np.flatnonzero((grown <= left - rest) & (above <= over))
        order = fits[np.lexsort((sums[fits], grown[fits]))]
        if not len(order):
            return None
        lowest = np.minimum.accumulate(sums[order])
        kept = order[np.concatenate([[True], sums[order][1:] < lowest[:-1]])]
        spent, lost, excess = grown[kept], sums[kept], above[kept]
        trail.append((kept // len(own), kept % len(own)))
    state = len(spent) - 1
    if not free and int(sum(size[pick] for size, pick in zip(sizes, picks, strict=True))) > budget:
        return None
    for at, (parents, chosen) in zip(reversed(free), reversed(trail), strict=True):
        picks[at] = int(open_[at][chosen[state]])
        state = int(parents[state])
    return picks


def check_fits(smallest: int, budget: int, what: str) -> None:
    """Raise BudgetError, which names the smallest size there is, where it exceeds `budget` bytes."""
    if smallest > budget:
        raise BudgetError(
            f"{what}: {budget} bytes are too few; the smallest that its layers can take is {smallest} bytes"
        )
