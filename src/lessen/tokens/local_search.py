"""Local search over per-block counts: move removals between blocks, or between pruning and merging, under a budget.

A gradient search sees rounded counts through a straight-through estimate; this step looks at the real reduction. Each
trial changes one schedule a little, keeps it under the budget, and is kept when the judge finds it better.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lessen.tokens.macs import TowerShape, full_macs, tower_macs
from lessen.tokens.reducers import RankMerge
from lessen.tokens.schedules import possible

STEPS = (6, 4, 3, 2, 1)
"""Tokens moved at once, largest first."""


@dataclass(frozen=True)
class Removals:
    """A schedule told by what each block takes away instead of what it leaves."""

    dropped: tuple[int, ...]
    merged: tuple[int, ...]

    def more(self, block: int, dropped: int, merged: int) -> Removals:
        """Return removals with `dropped` and `merged` added in one block, never below 0."""

        def added(values: tuple[int, ...], number: int) -> tuple[int, ...]:
            return (*values[:block], max(0, values[block] + number), *values[block + 1 :])

        return Removals(added(self.dropped, dropped), added(self.merged, merged))


class Limits:
    """The schedules that are allowed.

    Blocks before `first` are left alone, `protected` tokens and one more stay, merges find pairs, and at most `share`
    of the multiply-adds is needed.
    """

    def __init__(self, shape: TowerShape, protected: int, share: float, first: int = 0) -> None:
        self.shape, self.protected, self.share, self.first = shape, protected, share, first
        self.least = protected + 1

    def needs(self, schedule: RankMerge) -> float:
        """Return the share of the full multiply-adds that a schedule needs."""
        return tower_macs(self.shape, schedule.counts(self.shape.tokens, self.protected)) / full_macs(self.shape)

    def schedule(self, removals: Removals, like: RankMerge) -> RankMerge:
        """Return the schedule that takes these away, as far as tokens are left; what finds no pair is pruned."""
        pruned, merged, tokens = [], [], self.shape.tokens
        for drop, join in zip(removals.dropped, removals.merged, strict=True):
            after = max(self.least, tokens - drop - join)
            first = max(after, tokens - drop)
            if like.matching == "pairs":
                first = min(first, 2 * after - self.protected)
            pruned.append(first)
            merged.append(after)
            tokens = after
        return replace(like, pruned=tuple(pruned), merged=tuple(merged))

    def removals(self, schedule: RankMerge) -> Removals:
        """Return what each block takes away; a last block that leaves the least does so whatever reaches it."""
        dropped, merged, tokens = [], [], self.shape.tokens
        for first, after in zip(schedule.pruned, schedule.merged, strict=True):
            first = min(tokens, first)
            dropped.append(tokens - first)
            merged.append(max(0, first - after))
            tokens = min(first, after)
        if tokens == self.least:
            dropped[-1] = self.shape.tokens
        return Removals(tuple(dropped), tuple(merged))

    def even(self, like: RankMerge, last: bool = True) -> RankMerge:
        """Return the gentlest schedule that merges evenly in all blocks; where one runs out of pairs, others give more.

        `last` makes the last block prune all it may instead: after it only the class token is read.
        """
        spared, blocks = (0,) * self.first, self.shape.depth - last - self.first
        drops = (0,) * (self.shape.depth - 1) + (self.shape.tokens if last else 0,)
        for total in range(self.shape.tokens * max(1, blocks)):
            each = tuple(total * (b + 1) // blocks - total * b // blocks for b in range(blocks))
            merged = possible(self.shape.tokens, (*spared, *each, *(0,) * last), self.protected)
            found = self.schedule(Removals(drops, merged), like)
            if self.needs(found) <= self.share:
                break
        return found

    def moved(self, schedule: RankMerge, giver: int, taker: int, step: int) -> RankMerge | None:
        """Let block `giver` take away `step` tokens fewer and `taker` as many more as the budget then asks for."""
        before = self.removals(schedule)
        fewer = min(step, before.merged[giver])
        lighter = before.more(giver, fewer - step, -fewer)
        for more in range(1, 4 * step + 1):
            found = self.schedule(lighter.more(taker, 0, more), schedule)
            if self.needs(found) <= self.share:
                return found if found != schedule else None
        return None

    def converted(self, schedule: RankMerge, block: int, step: int) -> RankMerge | None:
        """Prune `step` tokens of a block instead of merging them (negative: the other way round)."""
        found = self.schedule(self.removals(schedule).more(block, step, -step), schedule)
        return found if found != schedule and self.needs(found) <= self.share else None


def neighbours(limits: Limits, schedule: RankMerge, order: random.Random) -> Iterator[RankMerge]:
    """Yield allowed schedules near `schedule`, large steps first and otherwise in random order."""
    blocks = range(limits.first, limits.shape.depth)
    for step in STEPS:
        moves = [limits.moved(schedule, giver, taker, step) for giver in blocks for taker in blocks if giver != taker]
        moves += [limits.converted(schedule, block, signed) for block in blocks for signed in (step, -step)]
        order.shuffle(moves)
        yield from (move for move in moves if move is not None)


def polish(
    limits: Limits, starts: list[RankMerge], judge: Callable[[RankMerge], float], trials: int, seed: int
) -> tuple[RankMerge, list[float]]:
    """Return the best schedule found and the judgements of every improvement.

    Args:
        starts: schedules within the budget to begin with; the best of them is improved.
        judge: what a schedule costs in quality; lower is better. It is called at most `trials` times.
    """
    order = random.Random(seed)
    seen: dict[RankMerge, float] = {}
    for start in starts:
        allowed = limits.schedule(limits.removals(start), start)
        if allowed not in seen:
            seen[allowed] = judge(allowed)
    best = min(seen, key=lambda schedule: seen[schedule])
    history = [seen[best]]
    improved = True
    while improved and len(seen) < trials:
        improved = False
        for candidate in neighbours(limits, best, order):
            if len(seen) >= trials:
                break
            if candidate in seen:
                continue
            seen[candidate] = judge(candidate)
            if seen[candidate] < seen[best]:
                best, improved = candidate, True
                history.append(seen[best])
                break
    return best, history
