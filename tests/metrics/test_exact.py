"""Intervals of flips hold their promise by enumeration, not by chance; the paired test is McNemar's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lessen.errors import ConfigError
from lessen.metrics.exact import at_least, exact_interval, incomplete_beta, net_loss_interval, paired_p
from lessen.metrics.many import mean_interval, student_quantile


def test_incomplete_beta_and_tails_are_scipys():
    for a, b, x in [(1, 5, 0.1), (50, 3, 0.9), (3, 9998, 1e-4), (0.5, 0.5, 0.3), (2, 3, 0.0), (2, 3, 1.0)]:
        assert incomplete_beta(a, b, x) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-10, abs=1e-14)
    assert at_least(3, 10, 0.2) == pytest.approx(stats.binom.sf(2, 10, 0.2))


@pytest.mark.parametrize("n", [7, 50, 200])
def test_the_interval_of_a_share_holds_95_of_100_at_every_share(n):
    ends = np.array([exact_interval(count, n) for count in range(n + 1)])
    shares = np.concatenate([np.linspace(0, 1, 501), np.nextafter(ends.ravel(), 0), np.nextafter(ends.ravel(), 1)])
    shares = shares[(shares >= 0) & (shares <= 1)]
    chance = stats.binom.pmf(np.arange(n + 1)[:, None], n, shares)
    covered = (chance * ((ends[:, :1] <= shares) & (shares <= ends[:, 1:]))).sum(axis=0)
    assert covered.min() >= 0.95
    plain = np.array([stats.binomtest(count, n).proportion_ci() for count in range(n + 1)])
    widths = (chance * np.diff(ends, axis=1)).sum(axis=0) / (chance * np.diff(plain, axis=1)).sum(axis=0)
    assert widths.max() <= 1.1


@pytest.mark.parametrize("n", [20, 50, 1000, 100_000])
def test_no_flip_in_n_is_at_most_three_in_n(n):
    assert exact_interval(0, n)[0] == 0.0
    assert exact_interval(0, n)[1] <= 3.0 / n
    assert exact_interval(n, n) == pytest.approx((1.0 - exact_interval(0, n)[1], 1.0))


def test_the_interval_of_a_net_loss_holds_for_few_flips_and_many():
    n = 50
    lost, gained = (each.ravel() for each in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    kept = lost + gained <= n
    lost, gained = lost[kept], gained[kept]
    low, high = net_loss_interval(lost, gained, n)
    for flips, side in [(0.01, 1.0), (0.06, 0.5), (0.06, 0.9), (0.2, 0.7), (0.4, 1.0)]:
        shares = np.stack(
            [np.full(len(lost), value) for value in (flips * side, flips * (1 - side), 1 - flips)], axis=1
        )
        chance = stats.multinomial.pmf(np.stack([lost, gained, n - lost - gained], axis=1), n, shares)
        truth = flips * (2 * side - 1)
        assert chance[(low <= truth) & (truth <= high)].sum() >= 0.95
    mirrored = net_loss_interval(gained, lost, n)
    np.testing.assert_allclose(mirrored[0], -high, atol=1e-12)
    assert float(net_loss_interval(0, 0, n)[1]) <= 3.0 / n


def test_the_paired_test_is_mcnemars_and_keeps_its_level():
    assert paired_p(0, 0) == 1.0
    assert paired_p(9, 2) == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert paired_p(2, 9) == paired_p(9, 2)
    for flips in (4, 11, 60):
        chance = stats.binom.pmf(np.arange(flips + 1), flips, 0.5)
        refused = np.array([paired_p(lost, flips - lost) <= 0.05 for lost in range(flips + 1)])
        assert chance[refused].sum() <= 0.05


def test_students_quantile_and_several_means():
    assert student_quantile(0.975, 7) == pytest.approx(stats.t.ppf(0.975, 7), rel=1e-9)
    assert student_quantile(0.9999, 3) == pytest.approx(stats.t.ppf(0.9999, 3), rel=1e-9)
    own, base = np.random.default_rng(0).normal(size=(2, 40)) * [[1.0], [2.0]]
    found = mean_interval(own, base)
    exact = stats.ttest_ind(own, base, equal_var=False).confidence_interval()
    assert found == pytest.approx((exact.low, exact.high))
    assert mean_interval(own, base, 10)[0] < found[0]


@pytest.mark.parametrize(("count", "trials"), [(1, 0), (5, 4), (-1, 3)])
def test_counts_that_cannot_be_are_refused(count, trials):
    with pytest.raises(ConfigError):
        exact_interval(count, trials)
    with pytest.raises(ConfigError):
        net_loss_interval(count, 0, trials)
    assert math.isfinite(exact_interval(0, 1)[1])
