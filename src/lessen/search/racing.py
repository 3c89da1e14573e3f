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
    running = _Race(costs, judge, metric)
    return running.least_lost(goal) if goal.loss is None else running.cheapest(goal)


class _Race:
    """What is known of the entrants so far."""

    def __init__(self, costs: Sequence[float], judge: Judge, metric: Metric) -> None:
        self.costs, self.judge, self.metric = costs, judge, metric
        self.shares, self.losses = [0.0] * len(costs), [np.inf] * len(costs)
        self.quantile = NormalDist().inv_cdf(1 - FALSE / (len(LOOKS) - 1))

    def least_lost(self, goal: Goal) -> Finish:
        """Judge all that hold the line on the cost, until one is left or all rows were seen."""
        alive = list(range(len(self.costs)))
        if any(goal.misses(cost, 0.0) == 0 for cost in self.costs):
            alive = [entrant for entrant in alive if goal.misses(self.costs[entrant], 0.0) == 0]
        for share in LOOKS:
            values = {entrant: self._look(entrant, share) for entrant in alive}
            first = min(values, key=lambda entrant: (values[entrant][0][0], entrant))
            alive = [
                one
                for one, (found, unseen) in values.items()
                if one == first or not self._above(found - values[first][0], share, unseen)
            ]
            if len(alive) == 1:
                break
        return self._finish(alive, goal)

    def cheapest(self, goal: Goal) -> Finish:
        """Look at all once, then at one after another from the cheapest on, each until its side of the line is certain.

        What is dearer than one within the line is not looked at again.
        """
        limit = goal.loss or 0.0
        looks = [self._look(entrant, LOOKS[0]) for entrant in range(len(self.costs))]
        for entrant in sorted(range(len(self.costs)), key=lambda one: (self.costs[one], one)):
            found, unseen = looks[entrant]
            for share in LOOKS:
                if share > LOOKS[0]:
                    found, unseen = self._look(entrant, share)
                if self._above(limit - found, share, unseen) or (share == 1.0 and found[0] <= limit):
                    return self._finish([entrant], goal)
                if self._above(found - limit, share, unseen):
                    break
        return self._nearest(goal)

    def _nearest(self, goal: Goal) -> Finish:
        """Judge those that may miss the budget by the least, once it is certain that all miss it."""
        alive = list(range(len(self.costs)))
        for share in LOOKS:
            bounds = {}
            for entrant in alive:
                found, unseen = self._look(entrant, share)
                around = self._around(found, share, unseen)
                bounds[entrant] = [goal.misses(self.costs[entrant], found[0] + sign * around) for sign in (-1, 1)]
            least = min(high for _, high in bounds.values())
            alive = [entrant for entrant, (low, _) in bounds.items() if low <= least]
            if len(alive) == 1:
                break
        return self._finish(alive, goal)

    def _look(self, entrant: int, share: float) -> tuple[Floats, float]:
        """Return an entrant's loss on a share of the rows, with its jackknife, and the metric's resolution there."""
        found = self.judge(entrant, share)
        sign = 1.0 if self.metric.higher_is_better else -1.0
        values = sign * (self.metric.jackknife(self.judge(None, share)) - self.metric.jackknife(found))
        if share >= self.shares[entrant]:
            self.losses[entrant], self.shares[entrant] = float(values[0]), share
        return values, self.metric.resolution(found)

    def _above(self, values: Floats, share: float, unseen: float) -> bool:
        """Tell whether a figure of all rows is above 0 for certain, from its value and its jackknife on a share."""
        return share < 1.0 and bool(values[0] > self._around(values, share, unseen))

    def _around(self, values: Floats, share: float, unseen: float) -> float:
        """Return how far a figure of all rows may lie from what a share of them says: 0 at the last look."""
        if share == 1.0:
            return 0.0
        error = deviation(values, unseen)
        return float("inf") if error is None else float(self.quantile * np.sqrt(1.0 - share) * error)

    def _finish(self, alive: list[int], goal: Goal) -> Finish:
        scores = goal.scores(np.asarray(self.costs)[alive], np.asarray(self.losses)[alive])
        return Finish(alive[int(np.argmin(scores))], tuple(self.shares), tuple(self.losses))
