from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.decoding.copying import Place, TextMemory
from lessen.decoding.cost import CostCurve
from lessen.decoding.policy import NOTHING, Acceptance, Candidate, Copier, plan

MEASURED = CostCurve(
    (1, 2, 3, 4, 6, 8, 11, 16, 21, 32, 64), (1, 1.66, 2.05, 1.64, 1.89, 2.04, 2.45, 2.47, 3.05, 3.60, 5.83)
)


def candidates_of(chances: list[list[float]]) -> list[Candidate]:
    candidates = []
    for row in chances:
        alive, survival = 1.0, []
        for chance in row:
            alive *= chance
            survival.append(alive)
        candidates.append(Candidate([0] * len(row), survival))
    return candidates


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0.05, 0.99), max_size=4), min_size=1, max_size=3))
def test_plan_is_at_least_as_good_as_any_choice_of_lengths(chances):
    candidates = candidates_of(chances)
    rows = len(candidates)
    rate = rows / MEASURED.seconds(rows)

    def value(lengths):
        expected = sum(sum(candidate.survival[:n]) for candidate, n in zip(candidates, lengths, strict=True))
        return expected - rate * (MEASURED.seconds(rows + sum(lengths)) - MEASURED.seconds(rows))

    best = max(value(lengths) for lengths in itertools.product(*(range(len(o.tokens) + 1) for o in candidates)))
    assert value(plan(candidates, MEASURED)) >= best - 1e-9


def test_nothing_is_drafted_where_the_pass_costs_more_than_the_tokens_bring():
    assert plan(candidates_of([[0.2] * 20]), MEASURED) == [0]
    assert plan([NOTHING], MEASURED) == [0]


def test_sure_copies_are_drafted_long_and_doubtful_ones_are_not():
    sure, doubtful = plan(candidates_of([[0.98] * 32, [0.02] * 32]), MEASURED)
    assert sure > 20
    assert doubtful == 0


def test_acceptance_learns_from_what_happened_and_comes_back():
    acceptance, place = Acceptance(), Place([1, 2], 0, 3)
    start = acceptance.chance(place)
    for _ in range(60):
        acceptance.learn(place, 0, False)
    low = acceptance.chance(place)
    for _ in range(60):
        acceptance.learn(place, 0, True)
    assert low < 0.1 < start < 0.7 < acceptance.chance(place)


def test_survival_falls_and_longer_agreement_is_trusted_more():
    acceptance = Acceptance()
    survival = acceptance.survival(Place([0] * 50, 0, 3), 20)
    assert all(later < earlier for earlier, later in itertools.pairwise(survival))
    chances = [acceptance.chance(Place([0], 0, matched)) for matched in (3, 4, 6, 8, 12, 20, 32)]
    assert chances == sorted(chances)


def test_longest_agreement_wins():
    copier = Copier([9, 1, 2, 3, 50, 8, 1, 2, 3, 60, 7, 9, 1, 2, 3])
    assert copier.candidate(1).tokens == [50]  # 9 1 2 3 agrees on four tokens, 8 1 2 3 on three


def test_a_copy_goes_on_after_one_substituted_token():
    source = list(range(100, 130))
    copier = Copier([*source, 5, *source[:4]])
    assert copier.candidate(3).tokens == source[4:7]
    copier.observe([*source[4:15], 77])  # 77 stands where source[15] was
    assert copier.candidate(3).tokens == source[16:19]


def test_shadow_learning_without_any_draft():
    copier = Copier([1, 2, 3, 4, 5, 1, 2, 3])
    before = copier.acceptance.chance(Place([0], 0, 3))
    copier.candidate(0)
    copier.observe([4])
    assert copier.acceptance.chance(Place([0], 0, 3)) > before


def test_a_draft_ends_with_the_first_end_of_sequence_token():
    copier = Copier([1, 2, 3, 4, 0, 6, 1, 2, 3], stops=frozenset({0}))
    assert copier.candidate(5).tokens == [4, 0]


def test_earlier_texts_are_copied_from():
    memory = TextMemory()
    memory.add([11, 12, 13, 14, 15, 16])
    assert Copier([11, 12, 13], memory=memory).candidate(8).tokens == [14, 15, 16]
    assert Copier([11, 12, 13]).candidate(8).tokens == []


def test_prompt_shorter_than_the_key_offers_nothing():
    assert Copier([1, 2]).candidate(5) == NOTHING
