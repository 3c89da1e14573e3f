"""Which width each layer takes within a budget of bytes: exactly, by going on from the best of what was left so far.

    layer 1: (bytes, harm) at 2, 3, 4 ... bits      states: all sums of bytes that no other state beats in both
    layer 2: ...                                    each layer multiplies them by its widths and drops the beaten

The multiple-choice knapsack by its undominated states (Nemhauser and Ullmann, Management Science 15, 1969). There are
never more states than different sums of bytes, of which layers of few shapes have few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lessen.errors import BudgetError

Choice = tuple[int, float]
"""Bytes and harm of a layer at one width."""


def allocate(layers: Sequence[Sequence[Choice]], budget: int, what: str) -> list[int]:
    """Return which choice each layer takes: of all that fit into `budget` bytes, those whose harms sum to the least.

    Raises:
        BudgetError: not even the smallest choices fit; names their bytes.
    """
    least = [min(size for size, _ in choices) for choices in layers]
    check_fits(sum(least), budget, what)
    rest = np.concatenate([np.cumsum(least[::-1])[::-1][1:], [0]]) if layers else np.zeros(0)
    sizes, harms = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for choices, still in zip(layers, rest, strict=True):
        own_sizes, own_harms = (np.asarray(column) for column in zip(*choices, strict=True))
        grown = (sizes[:, None] + own_sizes[None, :]).ravel()
        sums = (harms[:, None] + own_harms[None, :]).ravel()
        fits = np.flatnonzero(grown <= budget - still)
        order = fits[np.lexsort((sums[fits], grown[fits]))]
        best = np.minimum.accumulate(sums[order])
        kept = order[np.concatenate([[True], sums[order][1:] < best[:-1]])]
        sizes, harms = grown[kept].astype(np.int64), sums[kept]
        trail.append((kept // len(choices), kept % len(choices)))
    state, taken = len(sizes) - 1, []
    for parents, picks in reversed(trail):
        taken.append(int(picks[state]))
        state = int(parents[state])
    return taken[::-1]


def check_fits(smallest: int, budget: int, what: str) -> None:
    """Raise BudgetError, which names the smallest size there is, where it exceeds `budget` bytes."""
    if smallest > budget:
        raise BudgetError(
            f"{what}: {budget} bytes are too few; the smallest that its layers can take is {smallest} bytes"
        )
