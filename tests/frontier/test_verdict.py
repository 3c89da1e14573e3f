from __future__ import annotations

import numpy as np
import pytest

from lessen.frontier.verdict import (
    BETTER,
    UNKNOWN,
    WITHIN,
    WORSE,
    Difference,
    difference_over_seeds,
    judge,
    paired_difference,
)
from lessen.metrics import ACCURACY, AUC, LOGLOSS, MSE, Outcomes


def judged(targets, scores) -> Outcomes:
    return Outcomes({"score": scores, "target": targets})


def loss(low, high):
    return Difference(-(low + high) / 2, -high, -low, (), 100, "examples")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0, 0.5, WITHIN),
        (-3, -1, BETTER),
        (-3, 0, WITHIN),
        (0.5, 1.0, WITHIN),
        (0.5, 1.1, UNKNOWN),
        (1.0, 2, UNKNOWN),
        (1.1, 2, WORSE),
    ],
)
def test_verdict_by_the_two_ends_of_the_loss(low, high, verdict):
    assert judge(loss(low, high), 1.0).verdict == verdict


def test_lower_is_better_turns_the_sign():
    rising = Difference(0.2, 0.1, 0.3, (), 100, "examples", higher_is_better=False)
    assert judge(rising, 0.05).verdict == WORSE
    assert judge(rising, 0.4).verdict == WITHIN


def paired(metric, before, after):
    smallest = metric.resolution(before[0])
    sides = [{seed: metric.jackknife(each) for seed, each in enumerate(side)} for side in (before, after)]
    return paired_difference(*sides, len(before[0]), metric.higher_is_better, smallest)


def test_five_examples_never_prove_anything():
    targets = np.array([0, 1, 2, 1, 0])
    outcomes = judged(targets, np.eye(3)[targets])
    difference = paired(ACCURACY, [outcomes], [outcomes])
    assert judge(difference, 0.01, ACCURACY.resolution(outcomes)).verdict == UNKNOWN
    many = judged(np.zeros(400), np.zeros((400, 3)))
    assert judge(paired(ACCURACY, [many], [many]), 0.01, ACCURACY.resolution(many)).verdict == WITHIN


def test_identical_scores_differ_by_no_more_than_units_resolve():
    targets = np.random.default_rng(0).integers(0, 2, 500)
    outcomes = [judged(targets, np.random.default_rng(seed).normal(size=500)) for seed in range(3)]
    difference = paired(AUC, outcomes, outcomes)
    smallest = AUC.resolution(outcomes[0])
    assert (difference.value, difference.low, difference.high) == (0, -smallest, smallest)
    exact = paired(LOGLOSS, outcomes, outcomes)
    assert (exact.value, exact.low, exact.high) == (0, 0, 0)


def test_pairing_uses_only_common_seeds():
    targets = np.random.default_rng(0).integers(0, 2, 200)
    one, two = (AUC.jackknife(judged(targets, np.random.default_rng(seed).normal(size=200))) for seed in (1, 2))
    difference = paired_difference({0: one, 1: one}, {0: two}, 200)
    assert difference.per_seed == (float(two[0] - one[0]),)
    assert difference.source == "examples"


def test_interval_of_a_mean_has_the_width_of_theory():
    generator = np.random.default_rng(5)
    targets = np.zeros((2000, 1))
    before, after = generator.normal(size=(2000, 1)), generator.normal(size=(2000, 1))
    difference = paired(MSE, [judged(targets, before)], [judged(targets, after)])
    expected = 2 * 1.96 * float(np.std(after**2 - before**2)) / 2000**0.5
    assert difference.high - difference.low == pytest.approx(expected, rel=0.05)


def test_several_seeds_are_no_narrower_than_students_interval_over_them():
    generator = np.random.default_rng(11)
    targets = generator.integers(0, 2, 400)
    before = [judged(targets, targets + generator.normal(size=400)) for _ in range(3)]
    after = [judged(targets, each["score"] + generator.normal(0, 0.4, 400)) for each in before]
    difference = paired(AUC, before, after)
    spread = np.std(difference.per_seed, ddof=1)
    assert difference.high - difference.low >= 2 * 4.302 * spread / 3**0.5


def test_an_example_without_which_a_class_is_gone_gives_no_interval():
    targets = np.r_[np.zeros(15), np.ones(1)]
    outcomes = judged(targets, np.arange(16.0))
    difference = paired(AUC, [outcomes], [outcomes])
    assert difference.low is None
    assert difference.source == "nothing"
    assert judge(difference, 0.5).verdict == UNKNOWN


def test_without_outcomes_only_bounds_are_stated():
    each, wide = [-0.30, -0.31, -0.29], [0.02, 0.02, 0.02]
    assert judge(difference_over_seeds(each), 0.1).verdict == UNKNOWN
    assert judge(difference_over_seeds(each, wide), 0.1).verdict == WORSE
    assert judge(difference_over_seeds([-0.05, -0.06, -0.04], wide), 0.06).verdict == UNKNOWN
    assert difference_over_seeds(each, [0.02, None, 0.02]).source == "nothing"


def test_chance_of_constant_answers():
    labels = np.array([0, 0, 0, 1])
    outcomes = judged(labels, np.zeros(4))
    assert AUC.chance(outcomes) == 0.5
    assert ACCURACY.chance(outcomes) == 0.75
    assert LOGLOSS.chance(outcomes) == pytest.approx(LOGLOSS(np.full(4, np.log(1 / 3)), labels))
    assert MSE.chance(outcomes) == pytest.approx(MSE(np.full(4, 0.25), labels))


def test_few_examples_are_not_called_better():
    assert judge(loss(-3, -1), 1.0, resolution=2.0).verdict == UNKNOWN
