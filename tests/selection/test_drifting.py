"""The drifting selector: exact statistics, invariances, limits of switching, delayed labels, a planted drift."""

from __future__ import annotations

import numpy as np
import pytest

from lessen.errors import ConfigError, DataError
from lessen.selection.drifting import DecayedMoments, DriftingSelector, DriftSettings


def stream(rows, features, relevant, rng):
    """Gaussian features, the label is the noisy sign of the sum of the relevant ones."""
    x = rng.normal(size=(rows, features))
    return x, (x[:, relevant].sum(axis=1) + rng.normal(size=rows) > 0).astype(np.int64)


def follow(selector, x, y, delay=0):
    """Feed a stream whose labels come `delay` rows late; return the active sets after each update."""
    every, active, shown = selector.settings.every, [], 0
    for start in range(0, len(x) - every + 1, every):
        selector.observe(x[start : start + every])
        known = max(start + every - delay, 0)
        selector.reveal(y[shown:known])
        shown = max(shown, known)
        active.append(selector.active.copy())
    return np.asarray(active)


def test_moments_without_forgetting_are_exact():
    rng = np.random.default_rng(0)
    rows = rng.normal(3.0, 2.0, size=(1_000, 4))
    moments = DecayedMoments(4, float("inf"))
    for part in np.array_split(rows, 7):
        moments.add(part)
    assert moments.mean == pytest.approx(rows.mean(axis=0))
    assert moments.variance == pytest.approx(rows.var(axis=0))


def test_forgetting_halves_the_weight():
    moments = DecayedMoments(1, 100.0)
    moments.add(np.zeros((100, 1)))
    moments.add(np.ones((100, 1)))
    assert moments.weight == 150.0
    assert moments.mean[0] == pytest.approx(2 / 3)


def test_information_equals_scikit_learn_when_nothing_is_forgotten():
    metrics = pytest.importorskip("sklearn.metrics")
    x, y = stream(2_048, 5, [0, 1], np.random.default_rng(1))
    selector = DriftingSelector(5, DriftSettings(every=2_048, half_life=float("inf")))
    selector.observe(x)
    binned = selector._binned(np.stack(list(selector._unlabelled)))
    selector.reveal(y)
    chance = 15 * 1 / (2 * 2_048)
    for feature in range(5):
        plain = metrics.mutual_info_score(binned[:, feature], y)
        assert selector.information()[feature] == pytest.approx(plain - chance, abs=1e-9)


def test_units_do_not_matter_and_the_stream_decides_everything():
    rng = np.random.default_rng(2)
    x, y = stream(4_096, 30, [3, 4], rng)
    settings = DriftSettings(budget=5)
    plain = follow(DriftingSelector(30, settings), x, y)
    scaled = follow(DriftingSelector(30, settings), x * 2.0 ** rng.integers(-8, 8, 30), y)
    assert (plain == scaled).all()
    assert (plain == follow(DriftingSelector(30, settings), x, y)).all()


def test_constants_and_copies_are_never_active():
    x, y = stream(6_000, 12, [0, 1], np.random.default_rng(3))
    x[:, 5] = 7.0
    x[:, 6] = -3 * x[:, 0]
    active = follow(DriftingSelector(12, DriftSettings(budget=12)), x, y)
    assert not active[:, 5].any()
    assert not (active[:, 0] & active[:, 6]).any()


def test_budget_and_hysteresis_hold():
    rng = np.random.default_rng(4)
    x, y = stream(20_000, 60, [0, 1, 2], rng)
    active = follow(DriftingSelector(60, DriftSettings(budget=6, half_life=512.0)), x, y)
    assert active.sum(axis=1).max() == 6
    switches = active[1:] != active[:-1]
    for feature in range(60):
        times = np.flatnonzero(switches[:, feature])
        assert (np.diff(times) >= 3).all()


def test_masked_features_do_not_reach_the_model():
    x, y = stream(3_000, 10, [0], np.random.default_rng(5))
    selector = DriftingSelector(10, DriftSettings(budget=3))
    follow(selector, x, y)
    other = x.copy()
    other[:, ~selector.active] = 1e6
    assert (selector.masked(x) == selector.masked(other)).all()
    assert (selector.masked(x)[:, selector.active] != 0).any()


def test_labels_count_only_once_revealed():
    x, y = stream(2_048, 6, [0], np.random.default_rng(6))
    late, never = DriftingSelector(6), DriftingSelector(6)
    follow(late, x, y, delay=512)
    never.observe(x)
    assert late.counts.sum() / 6 < 2_048 - 512 + 1
    assert never.counts.sum() == 0
    with pytest.raises(DataError, match="only 2048 rows wait"):
        never.reveal(np.zeros(2_049, dtype=np.int64))
    with pytest.raises(DataError, match="classes from 0 to 1"):
        never.reveal(np.asarray([2]))


def test_bad_rows_and_settings():
    selector = DriftingSelector(3)
    with pytest.raises(DataError, match=r"\[n, 3\]"):
        selector.observe(np.zeros((4, 2)))
    with pytest.raises(DataError, match="NaN"):
        selector.observe(np.full((4, 3), np.nan))
    with pytest.raises(ConfigError, match="budget"):
        DriftSettings(budget=0)
    with pytest.raises(ConfigError, match="half_life"):
        DriftSettings(half_life=0)


def test_it_tracks_a_planted_drift_that_a_static_choice_loses():
    """200 features, 10 relevant, the relevant set replaced three times; labels come 64 rows late."""
    rng = np.random.default_rng(7)
    phases = [rng.choice(200, 10, replace=False) for _ in range(4)]
    parts = [stream(15_360, 200, relevant, rng) for relevant in phases]
    x, y = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    selector = DriftingSelector(200, DriftSettings(budget=20, half_life=2_048.0))
    active = follow(selector, x, y, delay=64)
    updates = 15_360 // 256
    static = active[updates - 1]
    assert static[phases[0]].mean() >= 0.9
    for number, relevant in enumerate(phases[1:], 1):
        settled = number * updates + 2 * 2_048 // 256  # two half-lives after the change
        assert active[settled, relevant].mean() >= 0.8
        assert active[(number + 1) * updates - 1, relevant].mean() >= 0.9
        assert static[relevant].mean() <= 0.4


def test_bins_follow_a_feature_whose_first_rows_say_nothing():
    """At first almost always 0, later told by its size, not its sign: two bins of old would see nothing."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(6_000, 6))
    x[:300, 2] = 50.0 * (rng.random(300) < 0.03)
    y = (np.abs(x[:, 2]) > 0.67).astype(np.int64)
    selector = DriftingSelector(6, DriftSettings(budget=1, half_life=1_000))
    active = follow(selector, x, y, delay=300)
    assert active[-1].tolist() == [False, False, True, False, False, False]
    assert selector.information()[2] > 0.3


def test_moved_counts_keep_their_sum():
    rng = np.random.default_rng(6)
    selector = DriftingSelector(3, DriftSettings(half_life=float("inf")))
    x = rng.normal(size=(2_048, 3))
    x[:256, 0] = 0.0
    y = (x[:, 1] > 0).astype(np.int64)
    follow(selector, x, y)
    assert selector.counts.sum(axis=(1, 2)) == pytest.approx([2_048] * 3)
    assert selector.counts[1].sum(axis=0) == pytest.approx(np.bincount(y))
