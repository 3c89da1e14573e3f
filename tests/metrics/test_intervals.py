"""The interval over seeds and examples: known forms at both ends, exact coverage between them, and lumpy units."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lessen.metrics import ACCURACY, AUC, CALIBRATION_RATIO, GAUC, LOGLOSS, RELATIVE_INFORMATION_GAIN, Metric, Outcomes
from lessen.metrics.base import GROUPS
from lessen.metrics.intervals import Z, bounded_interval, critical, crossed_interval, student

stats = pytest.importorskip("scipy.stats", reason="scipy is the reference of the distributions")


def values(effects: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the values of seeds whose sum over units is `whole` where each unit adds its effect [units, seeds]."""
    return np.concatenate([whole[None], whole - (effects - effects.mean(axis=0))])


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 19, 99, 999])
def test_students_quantile_equals_scipys(freedom):
    found = student(freedom)
    assert found == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-6)


def test_seeds_alone_give_students_interval_and_examples_alone_the_normal_one():
    whole = np.array([0.1, 0.3, 0.2, 0.5])
    low, high = crossed_interval(values(np.zeros((5000, 4)), whole))
    assert (low + high) / 2 == pytest.approx(whole.mean())
    assert (high - low) / 2 == pytest.approx(student(3) * whole.std(ddof=1) / 2, rel=1e-6)
    effects = np.random.default_rng(0).normal(0, 0.01, size=(5000, 1))
    for seeds in (1, 6):  # the same error in every seed: more seeds do not help
        low, high = crossed_interval(values(np.repeat(effects, seeds, axis=1), np.full(seeds, 0.2)))
        assert (high - low) / 2 == pytest.approx(Z * effects.std() * 5000**0.5, rel=2e-3)


def test_errors_of_each_seeds_own_shrink_with_more_seeds():
    effects = np.random.default_rng(1).normal(0, 0.01, size=(4000, 16))
    whole = effects.sum(axis=0)
    halves = []
    for seeds in (1, 16):
        low, high = crossed_interval(values(effects[:, :seeds], whole[:seeds]))
        halves.append((high - low) / 2)
    assert 0.2 < halves[1] / halves[0] < 0.3


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 8, 9, 19])
def test_the_factor_covers_the_truth_whatever_the_share_of_seeds(freedom):
    """Integrate the coverage over the distribution of the seeds' spread, exactly, for true shares from none to all."""
    chance = (np.arange(500) + 0.5) / 500
    spread = stats.chi2.ppf(chance, freedom) / freedom
    found = []
    for ratio in np.exp(np.linspace(-7, 9, 33)):  # variance of the seeds' mean over that of the examples
        total = 1.0 + ratio * spread
        half = np.sqrt(total) * [critical(share, freedom) for share in ratio * spread / total]
        found.append(float(np.mean(2 * stats.norm.cdf(half / math.sqrt(1.0 + ratio)) - 1)))
    assert min(found) > 0.947
    assert max(found) < (0.968 if freedom == 1 else 0.956)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (2, 0), (6, 0), (3, 2), (2, 2)])
def test_few_flipped_answers_get_an_exact_intervals_end(lost, gained):
    """The loss in answers, against Poisson's exact end where none were gained; wider than the normal one in any case."""
    n = 2000
    before, after = np.ones(n, bool), np.ones(n, bool)
    before[n - gained :] = False
    after[:lost] = False
    pair = [Outcomes({"score": np.stack([hit, ~hit], 1), "target": np.zeros(n, int)}) for hit in (before, after)]
    found = [ACCURACY.jackknife(outcomes)[:, None] for outcomes in pair]
    low, high = crossed_interval(found[1] - found[0], ACCURACY.resolution(pair[0]))
    end = -low * n
    assert end > lost - gained + Z * math.sqrt(lost + gained)
    if lost > 3 and not gained:
        assert -high * n == pytest.approx(stats.chi2.ppf(0.025, 2 * lost) / 2, rel=0.08)
    if not gained:
        assert end == pytest.approx(stats.chi2.ppf(0.975, 2 * lost + 2) / 2, rel=0.08)
    assert low <= (gained - lost) / n <= high


def test_undefined_units_give_no_interval():
    few = values(np.ones((20, 1)), np.array([0.5]))
    few[3:6] = np.nan
    assert crossed_interval(few) == (None, None)
    assert crossed_interval(values(np.ones((1, 1)), np.array([0.5]))) == (None, None)
    assert crossed_interval(values(np.zeros((40, 2)), np.array([0.5, 0.5])), math.inf) == (None, None)


def test_bounds_of_examples_are_never_narrower_than_what_is_known():
    whole, deviations = np.array([0.1, 0.12, 0.09]), np.array([0.02, 0.02, 0.02])
    low, high = bounded_interval(whole, deviations)
    assert high - low > 2 * Z * 0.02
    low, high = bounded_interval(whole[:1], deviations[:1])
    assert (high - low) / 2 == pytest.approx(Z * 0.02)


@pytest.mark.parametrize("metric", [AUC, LOGLOSS, RELATIVE_INFORMATION_GAIN, CALIBRATION_RATIO, GAUC])
@pytest.mark.parametrize("n", [60, 2 * GROUPS + 100])
def test_units_left_out_are_weights_of_nothing(metric, n):
    """The fast forms equal a naive loop over groups, with ties, weights and a class missing from some groups."""
    generator = np.random.default_rng(n)
    columns = {
        "score": np.round(generator.normal(size=n), 1),
        "target": generator.integers(0, 2, n),
        "weight": generator.integers(0, 3, n).astype(float),
    }
    outcomes = Outcomes(columns, generator.integers(0, 5, n))
    found = metric.jackknife(outcomes)
    assert len(found) == 1 + min(n, GROUPS)
    assert found[0] == metric(outcomes)
    groups = np.random.default_rng(0).integers(0, 10, n)
    fast = metric.left_out(outcomes, groups, 10)
    naive = Metric.left_out(metric, outcomes, groups, 10)
    np.testing.assert_allclose(fast, naive, atol=1e-12)


@pytest.mark.parametrize(("seeds", "ratio"), [(1, 1.0), (2, 0.0), (2, 0.5), (3, 0.25), (5, 1.0)])
def test_coverage_in_small(seeds, ratio):
    """A small part of benchmarks/verdict/coverage.py, on a mean of 200 units: the old bootstrap covered 62 to 86 %."""
    generator, trials, covered, false = np.random.default_rng(5), 400, 0, 0
    for _ in range(trials):
        units = ratio * generator.normal(size=(200, 1)) / 200**0.5
        seed = generator.normal(size=seeds) if seeds > 1 else np.zeros(1)
        low, high = crossed_interval(values(np.repeat(units, seeds, axis=1), units.sum() + seed))
        covered += low <= 0 <= high
        false += high < 0
    assert covered / trials >= 0.95 - 2.6 * math.sqrt(0.05 * 0.95 / trials)
    assert false / trials <= 0.025 + 2.6 * math.sqrt(0.025 * 0.975 / trials)
