from __future__ import annotations

import numpy as np
import pytest

from lessen.frontier.verdict import UNKNOWN, WITHIN, WORSE, Difference, PairedBootstrap, judge
from lessen.metrics import ACCURACY, AUC, LOGLOSS, MSE, Outcomes


def judged(targets, scores) -> Outcomes:
    return Outcomes({"score": scores, "target": targets})


def loss(low, high):
    return Difference(-(low + high) / 2, -high, -low, (), 100, "examples")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0, 0.5, WITHIN), (-3, -1, WITHIN), (0.5, 1.0, WITHIN), (0.5, 1.1, UNKNOWN), (1.0, 2, UNKNOWN), (1.1, 2, WORSE)],
)
def test_verdict_by_the_two_ends_of_the_loss(low, high, verdict):
    assert judge(loss(low, high), 1.0).verdict == verdict


def test_lower_is_better_turns_the_sign():
    rising = Difference(0.2, 0.1, 0.3, (), 100, "examples", higher_is_better=False)
    assert judge(rising, 0.05).verdict == WORSE
    assert judge(rising, 0.4).verdict == WITHIN


def test_five_examples_never_prove_anything():
    targets = np.array([0, 1, 2, 1, 0])
    scores = np.eye(3)[targets]
    outcomes = judged(targets, scores)
    bootstrap = PairedBootstrap(outcomes, 200)
    same = bootstrap.values(ACCURACY, outcomes)
    difference = bootstrap.difference(ACCURACY, {0: same}, {0: same})
    assert difference.low == difference.high == 0
    assert judge(difference, 0.01, ACCURACY.resolution(outcomes)).verdict == UNKNOWN
    assert judge(difference, 0.01, ACCURACY.resolution(judged(np.zeros(400), np.zeros((400, 3))))).verdict == WITHIN


def test_identical_scores_differ_by_exactly_nothing():
    targets = np.random.default_rng(0).integers(0, 2, 500)
    outcomes = [judged(targets, np.random.default_rng(seed).normal(size=500)) for seed in range(3)]
    bootstrap = PairedBootstrap(outcomes[0], 100)
    values = {seed: bootstrap.values(AUC, each) for seed, each in enumerate(outcomes)}
    difference = bootstrap.difference(AUC, values, values)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_pairing_uses_only_common_seeds():
    targets = np.random.default_rng(0).integers(0, 2, 200)
    first, second = (judged(targets, np.random.default_rng(seed).normal(size=200)) for seed in (1, 2))
    bootstrap = PairedBootstrap(first, 100)
    one, two = bootstrap.values(AUC, first), bootstrap.values(AUC, second)
    assert bootstrap.difference(AUC, {0: one, 1: one}, {0: two}).per_seed == (float(two[0] - one[0]),)


def test_interval_of_a_mean_has_the_width_of_theory():
    generator = np.random.default_rng(5)
    targets = np.zeros((2000, 1))
    before, after = generator.normal(size=(2000, 1)), generator.normal(size=(2000, 1))
    bootstrap = PairedBootstrap(judged(targets, before), 1000)
    values = [{0: bootstrap.values(MSE, judged(targets, scores))} for scores in (before, after)]
    difference = bootstrap.difference(MSE, *values)
    expected = 2 * 1.96 * float(np.std(after**2 - before**2)) / 2000**0.5
    assert difference.high - difference.low == pytest.approx(expected, rel=0.1)


def test_interval_covers_the_truth_when_seeds_differ():
    """Differences of 4 seeds drawn around 0 with spread s: 95 % intervals must cover 0 about 95 % of the time."""
    from lessen.frontier.verdict import _over_seeds, _percentiles

    covered, generator = 0, np.random.default_rng(11)
    for trial in range(300):
        example_error = generator.normal(0, 0.3)
        draws = example_error + generator.normal(0, 0.3, size=(400, 1)) + generator.normal(0, 1.0, size=(1, 4))
        low, high = _percentiles(_over_seeds(draws, trial))
        covered += low <= 0 <= high
    assert 0.85 <= covered / 300 <= 0.99


def test_undefined_resamples_give_no_interval():
    targets = np.r_[np.zeros(60), np.ones(1)]
    outcomes = judged(targets, np.arange(61.0))
    bootstrap = PairedBootstrap(outcomes, 200)
    values = bootstrap.values(AUC, outcomes)
    difference = bootstrap.difference(AUC, {0: values}, {0: values})
    assert difference.low is None
    assert judge(difference, 0.5).verdict == UNKNOWN


def test_chance_of_constant_answers():
    labels = np.array([0, 0, 0, 1])
    outcomes = judged(labels, np.zeros(4))
    assert AUC.chance(outcomes) == 0.5
    assert ACCURACY.chance(outcomes) == 0.75
    assert LOGLOSS.chance(outcomes) == pytest.approx(LOGLOSS(np.full(4, np.log(1 / 3)), labels))
    assert MSE.chance(outcomes) == pytest.approx(MSE(np.full(4, 0.25), labels))


def test_results_repeat():
    targets = np.random.default_rng(0).integers(0, 2, 300)
    outcomes = judged(targets, np.random.default_rng(1).normal(size=300))
    assert np.array_equal(
        PairedBootstrap(outcomes, 60).values(AUC, outcomes), PairedBootstrap(outcomes, 60).values(AUC, outcomes)
    )
