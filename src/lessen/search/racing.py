"""Races: recipes judged on more and more of the validation rows, each out as soon as it can no longer win on all.

Rows come in an order drawn once. What the rows so far say of a difference on all rows is an interval: paired, row by
row, and narrower the more of all rows were seen, for at the last look nothing is left to chance. The looks of a race
share a chance of one in twenty that they send the winner out.

Source: Maron and Moore 1994, "Hoeffding Races", with intervals of paired differences in place of bounds. The level is
shared by looks, not by entrants: those far from the winner never beat it by chance, and whether those near do it more
often than promised is found by simulation (`benchmarks/search/racing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lessen.metrics import Metric, Outcomes
from lessen.metrics.base import Floats
from lessen.metrics.intervals import deviation
from lessen.search.goal import Goal

LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Shares of the rows at which entrants are compared."""
FALSE = 0.05
"""Chance that the looks of a race send the winner out."""
Judge = Callable[[int | None, float], Outcomes]
"""Outcomes of an entrant (None: the uncompressed model) on the first share of the rows, in the order of the race."""


@dataclass(frozen=True)
class Finish:
    """How a race ended."""

    winner: int
    """The entrant that does best by the goal."""
    shares: tuple[float, ...]
    """Share of the rows that each entrant was judged on."""
    losses: tuple[float, ...]
    """Loss of the metric on the rows that were seen."""


def race(costs: Sequence[float], judge: Judge, metric: Metric, goal: Goal) -> Finish:
    """Return who does best by `goal` among entrants with these costs, as shares of the reference's.

    With a line on the metric the cheapest within it wins, with a line on the cost alone the one that loses least within
    it; where nobody holds the budget, the one that misses it least.
    """
    alive = list(range(len(costs)))
    shares, losses = [0.0] * len(costs), [np.inf] * len(costs)
    if goal.loss is None and any(goal.misses(cost, 0.0) == 0 for cost in costs):
        alive = [entrant for entrant in alive if goal.misses(costs[entrant], 0.0) == 0]
    quantile = NormalDist().inv_cdf(1 - FALSE / (len(LOOKS) - 1))
    for share in LOOKS:
        if len(alive) == 1 and losses[alive[0]] < np.inf:
            break
        base = metric.jackknife(judge(None, share))
        sign = 1.0 if metric.higher_is_better else -1.0
        values = {}
        for entrant in alive:
            found = judge(entrant, share)
            values[entrant] = sign * (base - metric.jackknife(found))
            losses[entrant], shares[entrant] = float(values[entrant][0]), share
            unseen = metric.resolution(found)
        if share < 1.0:
            alive = _left(values, costs, goal, quantile * np.sqrt(1.0 - share), unseen)
    scores = goal.scores(np.asarray(costs)[alive], np.asarray(losses)[alive])
    return Finish(alive[int(np.argmin(scores))], tuple(shares), tuple(losses))


def _left(values: dict[int, Floats], costs: Sequence[float], goal: Goal, quantile: float, unseen: float) -> list[int]:
    """Return the entrants that may still win."""
    if goal.loss is None:
        first = min(values, key=lambda entrant: (values[entrant][0], entrant))
        return [one for one in values if one == first or not _above(values[one] - values[first], 0.0, quantile, unseen)]
    limit = goal.loss
    inside = [one for one, found in values.items() if _above(limit - found, 0.0, quantile, unseen)]
    cheapest = min((costs[one] for one in inside), default=np.inf)
    left = [
        one
        for one, found in values.items()
        if costs[one] <= cheapest and not _above(found - limit, 0.0, quantile, unseen)
    ]
    return left or list(values)


def _above(values: Floats, limit: float, quantile: float, unseen: float) -> bool:
    """Tell whether a figure of all rows is above `limit` for certain, from its value and its jackknife on some."""
    error = deviation(values, unseen)
    return error is not None and bool(values[0] - quantile * error > limit)
