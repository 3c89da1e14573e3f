"""Scores against their definitions: triple loops, scikit-learn, exact expectations, and the traps of OutRank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.selection.ranking.information import Chance, adjacent_counts, entropy, shifted_information, xlogx
from lessen.selection.ranking.tally import Tally

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def table_of(x, y):
    tally = Tally(limit=1 << 20)
    tally.add(x.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15), y.astype(np.uint8))
    return tally.contingency(np.bincount(y).astype(np.int64))


def by_the_definition(x, y):
    """OutRank's score by its triple loop: for each value, the entropy of shifted rows minus that of its own rows."""
    rows, total = len(x), 0.0
    for value in np.unique(x):
        own = np.flatnonzero(x == value)
        if len(own) >= 2:
            shifted = (own + len(own)) % rows
            total += len(own) / rows * (entropy(np.bincount(y[shifted])) - entropy(np.bincount(y[own])))
    return total


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 400), st.integers(1, 60), st.integers(1, 5), st.integers(0, 10**6))
def test_one_pass_form_equals_the_triple_loop(rows, values, classes, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, values, rows), rng.integers(0, classes, rows)
    assert shifted_information(x, y) == pytest.approx(by_the_definition(x, y), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("values", [2, 30, 900])
def test_plain_and_adjusted_equal_scikit_learn(values, classes):
    rng = np.random.default_rng(values)
    x, y = rng.integers(0, values, 3_000), rng.integers(0, classes, 3_000)
    y = np.where(rng.random(3_000) < 0.2, x % classes, y)
    scores = Chance(np.bincount(y)).scores(table_of(x, y))
    assert scores.mutual == pytest.approx(sklearn_metrics.mutual_info_score(x, y), abs=1e-6)
    assert scores.adjusted == pytest.approx(sklearn_metrics.adjusted_mutual_info_score(x, y), abs=1e-6)


def test_corrected_score_is_mutual_information_minus_its_expectation():
    from sklearn.metrics.cluster import contingency_matrix
    from sklearn.metrics.cluster._expected_mutual_info_fast import expected_mutual_information

    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 200, 2_000), rng.integers(0, 3, 2_000)
    expected = expected_mutual_information(contingency_matrix(x, y, sparse=True).astype(np.int64), 2_000)
    scores = Chance(np.bincount(y)).scores(table_of(x, y))
    assert scores.corrected == pytest.approx(scores.mutual - expected, abs=1e-6)


def test_expected_entropy_is_the_mean_over_random_draws():
    classes = np.asarray([900, 90, 10])
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 100, 1_000):
        drawn = rng.multivariate_hypergeometric(classes, count, size=20_000)
        seen = np.log(count) - xlogx(drawn).sum(axis=1) / count
        error = 5 * seen.std() / np.sqrt(len(seen)) + 1e-9
        assert Chance(classes).expected(np.asarray([count]))[0] == pytest.approx(seen.mean(), abs=error)


@pytest.mark.parametrize("values", [2, 100, 2_000, 10_000, 50_000])
def test_noise_of_any_cardinality_scores_near_zero(values):
    rng = np.random.default_rng(values)
    rows = 16_384
    x, y = rng.integers(0, values, rows), rng.integers(0, 2, rows)
    scores = Chance(np.bincount(y)).scores(table_of(x, y))
    assert abs(scores.corrected) < 0.01
    assert abs(shifted_information(x, y)) < 0.02
    if values == 50_000:
        assert scores.mutual > 0.4  # what plain information would have ranked on top


def test_a_column_about_itself_scores_its_entropy_above_chance():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 5_000)
    scores = Chance(np.bincount(y)).scores(table_of(y, y))
    assert scores.mutual == pytest.approx(entropy(np.bincount(y)), abs=1e-12)
    assert scores.determined == pytest.approx(1.0, abs=1e-12)
    assert scores.adjusted == pytest.approx(1.0, abs=1e-9)


def test_columns_of_equal_sums_get_the_same_correction():
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 3_000, 16_384), rng.integers(0, 2, 16_384)
    x[0] += y.sum() - x.sum()  # the sum of differences is 0: outrank takes such a pair for the diagonal
    x[0] = abs(x[0])
    scores = Chance(np.bincount(y)).scores(table_of(x, y))
    assert scores.mutual > 0.05
    assert abs(scores.corrected) < 0.01


def test_near_unique_keys_score_zero_although_plain_information_is_high():
    rows = 10_000
    y = np.random.default_rng(2).integers(0, 2, rows)
    twice = np.repeat(np.arange(rows // 2), 2)
    chance = Chance(np.bincount(y))
    assert chance.scores(table_of(np.arange(rows), y)).corrected == pytest.approx(0.0, abs=1e-12)
    scores = chance.scores(table_of(twice, y))
    assert scores.mutual > 0.3
    assert abs(scores.corrected) < 0.02


def test_codes_and_row_order_do_not_matter():
    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 50, 4_000), rng.integers(0, 2, 4_000)
    y = np.where(x < 10, 1, y)
    chance = Chance(np.bincount(y))
    order = np.argsort(y, kind="stable")
    renamed = rng.permutation(50)[x]
    first = chance.scores(table_of(x, y))
    assert chance.scores(table_of(renamed, y)).corrected == pytest.approx(first.corrected, abs=1e-12)
    assert chance.scores(table_of(x[order], y[order])) == first
    assert shifted_information(x[order], y[order]) < 0.5 * first.corrected  # the shift alone hides sorted signals


@pytest.mark.parametrize(
    ("classes", "values", "rows", "draws"), [(2, 20, 2_000, 200), (3, 1_500, 6_000, 100)], ids=["few", "many"]
)
def test_p_values_are_uniform_for_noise(classes, values, rows, draws):
    rng = np.random.default_rng(4)
    y = rng.integers(0, classes, rows)
    chance = Chance(np.bincount(y))
    p_values = []
    for _ in range(draws):
        table = table_of(rng.integers(0, values, rows), y)
        p_values.append(chance.p_value(table, chance.scores(table).corrected))
    assert 0.35 < np.mean(p_values) < 0.65
    assert np.mean(np.asarray(p_values) <= 0.05) <= 0.12


def test_p_values_are_small_for_signal():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 2_000)
    chance = Chance(np.bincount(y))
    table = table_of(np.where(rng.random(2_000) < 0.3, y, rng.integers(0, 20, 2_000)), y)
    assert chance.p_value(table, chance.scores(table).corrected) == pytest.approx(0.01)


def test_adjacent_counts():
    assert adjacent_counts(np.asarray([3, 3, 4, 9, 9, 9])).tolist() == [2, 1, 3]
    assert adjacent_counts(np.asarray([])).tolist() == []
