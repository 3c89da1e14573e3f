"""Passes are counted without a model, so that a change of policy shows at once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.decoding import CostCurve, Decoder, replay
from tiny_models import plain, repeating_prompt

CURVE = CostCurve(
    (1, 2, 3, 4, 6, 8, 11, 16, 21, 32, 64), (1, 1.66, 2.05, 1.64, 1.89, 2.04, 2.45, 2.47, 3.05, 3.6, 5.83)
)
TEXT = list(range(100, 260))


def edited(changes: int, seed: int = 0) -> list[int]:
    """The text with some tokens changed, as a light edit does."""
    changed = random.Random(seed).sample(range(160), changes)
    return [9000 + place if place in changed else token for place, token in enumerate(TEXT)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_passes_and_rows_add_up(prompt, answer):
    result = replay(prompt, answer, CURVE)
    assert result.tokens == len(answer)
    assert result.passes + result.accepted == len(answer) - 1
    assert result.rows == result.passes + result.drafted
    assert result.accepted <= result.drafted


def test_an_exact_copy_takes_few_long_passes():
    result = replay([*TEXT, 1, 2], TEXT, CURVE)
    assert result.passes == 7  # two to find the place, then drafts as long as trust allows
    assert result.speed_up > 4.5


@pytest.mark.parametrize(("changes", "passes"), [(4, 12), (16, 26)])
def test_light_edits(changes, passes):
    assert replay([*TEXT, 1, 2], edited(changes), CURVE).passes == passes


def test_planned_drafts_beat_fixed_ones_on_light_edits():
    edits = [edited(4, seed) for seed in range(9)]
    planned = sum(replay([*TEXT, 1, 2], edit, CURVE).seconds for edit in edits)
    assert planned < 0.95 * sum(replay([*TEXT, 1, 2], edit, CURVE, fixed_draft=10).seconds for edit in edits)


def test_text_that_never_repeats_costs_nothing():
    result = replay(TEXT, list(range(1000, 1200)), CURVE)
    assert (result.passes, result.drafted, result.speed_up) == (199, 0, 1.0)


def test_chance_repeats_are_tried_a_few_times_and_then_left_alone():
    rnd = random.Random(0)

    def phrase():  # the same three tokens, followed by something else each time
        return [1, 2, 3, *(rnd.randrange(10, 10_000) for _ in range(6))]

    prompt = [token for _ in range(40) for token in phrase()]
    answer = [token for _ in range(40) for token in phrase()]
    planned, fixed = replay(prompt, answer, CURVE), replay(prompt, answer, CURVE, fixed_draft=10)
    assert planned.speed_up > 0.97
    assert fixed.speed_up < 0.9


def test_replay_counts_what_decoding_takes(model):
    decoder, rnd = Decoder(model, costs=CURVE, remember=0), random.Random(2)
    for _ in range(8):
        prompt = repeating_prompt(rnd)
        answer = plain(model, prompt, 30, eos_token_id=None)
        decoder.complete([prompt], max_new_tokens=30, eos_token_id=None)
        counted, report = replay(prompt, answer, CURVE), decoder.report
        assert (counted.passes, counted.drafted, counted.accepted) == (report.passes, report.drafted, report.accepted)


def test_an_empty_answer_takes_nothing():
    assert replay([1, 2], [], CURVE).speed_up == 1.0
