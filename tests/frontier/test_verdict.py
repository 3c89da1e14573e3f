from __future__ import annotations

import numpy as np
import pytest

from lessen.frontier.verdict import UNKNOWN, WITHIN, WORSE, Difference, PairedBootstrap, chance, judge, resolution
from lessen.metrics import ACCURACY, AUC, LOGLOSS, MSE


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
    bootstrap = PairedBootstrap(targets, 200)
    same = bootstrap.values(ACCURACY, scores)
    difference = bootstrap.difference(ACCURACY, {0: same}, {0: same})
    assert difference.low == difference.high == 0
    assert judge(difference, 0.01, resolution(ACCURACY, targets)).verdict == UNKNOWN
    assert judge(difference, 0.01, resolution(ACCURACY, np.zeros(400))).verdict == WITHIN


def test_identical_scores_differ_by_exactly_nothing():
    targets = np.random.default_rng(0).integers(0, 2, 500)
    bootstrap = PairedBootstrap(targets, 100)
    values = {seed: bootstrap.values(AUC, np.random.default_rng(seed).normal(size=500)) for seed in range(3)}
    difference = bootstrap.difference(AUC, values, values)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_pairing_uses_only_common_seeds():
    targets = np.random.default_rng(0).integers(0, 2, 200)
    bootstrap = PairedBootstrap(targets, 100)
    one = bootstrap.values(AUC, np.random.default_rng(1).normal(size=200))
    two = bootstrap.values(AUC, np.random.default_rng(2).normal(size=200))
    assert bootstrap.difference(AUC, {0: one, 1: one}, {0: two}).per_seed == (float(two[0] - one[0]),)


def test_interval_of_a_mean_has_the_width_of_theory():
    generator = np.random.default_rng(5)
    targets = np.zeros((2000, 1))
    bootstrap = PairedBootstrap(targets, 1000)
    before, after = generator.normal(size=(2000, 1)), generator.normal(size=(2000, 1))
    difference = bootstrap.difference(
        MSE, {0: bootstrap.values(MSE, before)}, {0: bootstrap.values(MSE, after)}
    )  # fmt: skip
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
    bootstrap = PairedBootstrap(targets, 200)
    values = bootstrap.values(AUC, np.arange(61.0))
    difference = bootstrap.difference(AUC, {0: values}, {0: values})
    assert difference.low is None
    assert judge(difference, 0.5).verdict == UNKNOWN


def test_chance_of_constant_answers():
    labels = np.array([0, 0, 0, 1])
    assert chance(AUC, labels) == 0.5
    assert chance(ACCURACY, labels) == 0.75
    assert chance(LOGLOSS, labels) == pytest.approx(LOGLOSS(np.full(4, np.log(1 / 3)), labels))
    assert chance(MSE, labels.astype(float)) == pytest.approx(MSE(np.full(4, 0.25), labels))
    assert chance(MSE, np.array([])) is None


def test_results_repeat():
    targets = np.random.default_rng(0).integers(0, 2, 300)
    scores = np.random.default_rng(1).normal(size=300)
    assert np.array_equal(
        PairedBootstrap(targets, 60).values(AUC, scores), PairedBootstrap(targets, 60).values(AUC, scores)
    )
