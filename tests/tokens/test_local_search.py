from __future__ import annotations

import random

import pytest

from lessen.tokens import RankMerge
from lessen.tokens.local_search import Limits, Removals, neighbours, polish
from lessen.tokens.macs import TowerShape

SHAPE = TowerShape(tokens=65, width=192, depth=6, hidden=384)
LIKE = RankMerge(pruned=(65,) * 6, merged=(65,) * 6, matching="pairs")


def test_a_schedule_and_its_removals_say_the_same():
    limits = Limits(SHAPE, 1, 1.0)
    schedule = RankMerge(pruned=(65, 50, 45, 40, 29, 12), merged=(60, 48, 41, 33, 25, 9), matching="pairs")
    assert limits.removals(schedule) == Removals((0, 10, 3, 1, 4, 13), (5, 2, 4, 7, 4, 3))
    assert limits.schedule(limits.removals(schedule), LIKE) == schedule


def test_merges_without_pairs_are_pruned_and_two_tokens_stay():
    limits = Limits(SHAPE, 1, 1.0)
    found = limits.schedule(Removals((0,) * 6, (50, 5, 5, 5, 5, 5)), LIKE)
    assert found.merged == (15, 10, 5, 2, 2, 2)
    assert found.pruned == (29, 15, 9, 3, 2, 2)
    assert found.counts(65, 1) == [15, 10, 5, 2, 2, 2]


@pytest.mark.parametrize("first", [0, 2])
def test_the_even_schedule_and_all_neighbours_keep_the_budget(first):
    limits = Limits(SHAPE, 1, 0.7, first)
    start = limits.even(LIKE)
    assert 0.66 < limits.needs(start) <= 0.7
    assert start.merged[-1] == 2
    found = list(neighbours(limits, start, random.Random(0)))
    assert len(set(found)) > 20
    assert start not in found
    for schedule in found:
        assert 0.6 < limits.needs(schedule) <= 0.7
        assert schedule.merged[:first] == schedule.pruned[:first] == (65,) * first
    assert any(schedule.pruned != schedule.merged and schedule.merged == start.merged for schedule in found)


def test_the_better_start_is_improved_within_the_trials():
    limits, calls = Limits(SHAPE, 1, 0.7), []
    wanted = 40

    def judge(schedule):
        calls.append(schedule)
        return abs(schedule.merged[2] - wanted) + 0.1 * (schedule.pruned[1] != schedule.merged[1])

    worse = limits.schedule(Removals((40, 0, 0, 0, 0, 65), (0,) * 6), LIKE)
    best, history = polish(limits, [worse, limits.even(LIKE)], judge, 60, 0)
    assert len(calls) == len(set(calls)) <= 60
    assert history == sorted(history, reverse=True)
    assert history[0] == judge(limits.even(LIKE)) < judge(worse)
    assert abs(best.merged[2] - wanted) <= 1 < abs(limits.even(LIKE).merged[2] - wanted)
    assert polish(limits, [worse], judge, 1, 0) == (worse, [judge(worse)])


def test_an_even_schedule_reaches_a_harsh_budget_by_merging_what_pairs_there_are():
    limits = Limits(SHAPE, 1, 0.4)
    start = limits.even(LIKE, last=False)
    assert 0.35 < limits.needs(start) <= 0.4
    assert all(before == after for before, after in zip(start.pruned, (65, *start.merged), strict=False))
    assert limits.even(LIKE).merged[-1] == 2 < start.merged[-1]
