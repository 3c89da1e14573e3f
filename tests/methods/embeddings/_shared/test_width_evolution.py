from __future__ import annotations

import random

import pytest

from lessen.methods.embeddings._shared.width_evolution import Evolution


@pytest.mark.parametrize("seed", range(5))
def test_the_best_list_ever_scored_is_returned_and_none_is_scored_twice(seed):
    draws = random.Random(seed)
    target = [draws.randint(1, 64) for _ in range(39)]
    scored = []

    def fitness(widths):
        scored.append((-sum(abs(a - b) for a, b in zip(widths, target, strict=True)), widths))
        return scored[-1][0]

    best, score, count = Evolution(39, 64, 30).run(fitness, draws)
    assert (score, best) == max(scored, key=lambda pair: pair[0])
    assert count == len(scored) == len({widths for _, widths in scored})
    # the published bookkeeping returned -536 on this problem, correct bookkeeping -377
    assert score > -400


def test_offspring_leave_their_parents_alone_and_cut_inside():
    parents = [tuple([1] * 8), tuple([5] * 8)]
    made = Evolution(8, 5, 1, probability=0.0, children=200).offspring(parents, random.Random(0))
    assert parents == [tuple([1] * 8), tuple([5] * 8)]
    children = made[10:]
    assert {child.count(1) for child in children if len(set(child)) == 2} == set(range(1, 8))
    assert all(1 <= width <= 5 for child in Evolution(8, 5, 1).offspring(parents, random.Random(1)) for width in child)


def test_repaired_lists_only_are_scored():
    seen = []
    Evolution(3, 9, 4).run(lambda widths: seen.append(widths) or 0.0, random.Random(0), lambda widths: (7, *widths[1:]))
    assert {widths[0] for widths in seen} == {7}
