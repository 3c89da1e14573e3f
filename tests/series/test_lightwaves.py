"""LightWaveS as an estimator: selection against scipy, ridge against scikit-learn, shards, storage, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from lessen.errors import ArtifactError, ConfigError, DataError
from lessen.series import LightWaves, LightWavesSettings
from lessen.series.ridge import fit_ridge
from lessen.series.selection import anova_f, mrmr, top

SMALL = LightWavesSettings(features=40, before=120)


@pytest.fixture(scope="module")
def waves():
    """Three classes told apart by the frequency in channel 1; channels 0 and 2 are noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    time = np.arange(41)
    x = rng.normal(size=(120, 3, 41))
    x[:, 1] += 2 * np.sin(time * (0.2 + 0.3 * labels[:, None]) + rng.uniform(0, 6, (120, 1)))
    order = rng.permutation(120)
    return x[order].astype(np.float32), np.asarray(["a", "b", "c"])[labels[order]]


def test_anova_equals_scipy_and_keeps_perfect_features():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 90)
    x = rng.normal(size=(90, 5)) + 0.3 * labels[:, None]
    wanted = stats.f_oneway(*(np.round(x[labels == k], 7) for k in range(3))).statistic
    assert anova_f(x, labels) == pytest.approx(wanted, rel=1e-9)
    special = anova_f(np.stack([labels.astype(float), np.ones(90)], axis=1), labels)
    assert special[0] > 1e9
    assert np.isfinite(special[0])
    assert top(special, 5).tolist() == [0]


def test_mrmr_takes_the_most_relevant_then_what_is_new():
    rng = np.random.default_rng(4)
    first, other = rng.normal(size=(2, 500))
    x = np.stack([first, first + 0.01 * rng.normal(size=500), other], axis=1)
    assert mrmr(x, np.asarray([10.0, 9.9, 2.0]), 3) == [0, 2, 1]


def test_ridge_equals_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(5)
    x, labels = rng.normal(size=(60, 80)), rng.integers(0, 3, 60)
    x[:, 0] += 2 * labels
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    weights, bias, penalty = fit_ridge(x, labels, 3)
    wanted = linear.RidgeClassifier(alpha=penalty).fit(scaled, labels)
    assert x @ weights + bias == pytest.approx(wanted.decision_function(scaled), abs=1e-6)
    errors = []
    for left_out in range(60):
        rest = np.arange(60) != left_out
        model = linear.Ridge(alpha=penalty).fit(scaled[rest], np.where(labels[rest, None] == np.arange(3), 1.0, -1.0))
        errors.append(model.predict(scaled[[left_out]])[0] - np.where(labels[left_out] == np.arange(3), 1.0, -1.0))
    others = [fit_one(scaled, labels, alpha) for alpha in np.logspace(-3, 3, 10)]
    assert np.mean(np.square(errors)) <= min(others) + 1e-9


def fit_one(x, labels, alpha):
    """Exact leave-one-out error by refitting on the eigen decomposition of the centred problem."""
    target = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    hat = x @ np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T) + 1 / len(x)
    return float((((target - hat @ target) / (1 - np.diag(hat))[:, None]) ** 2).mean())


def test_it_learns_and_reads_the_right_channel(waves):
    x, y = waves
    model = LightWaves(SMALL).fit(x[:80], y[:80])
    assert (model.predict(x[80:]) == y[80:]).mean() > 0.9
    counts = np.bincount(model.rows[:, 0], minlength=3)
    assert counts[1] > 0.8 * counts.sum()
    assert model.transform(x[80:]).shape == (40, 40)
    assert model.decision(x[80:81]) == pytest.approx(model.decision(x[80:])[:1], abs=1e-5)


def test_shards_agree(waves):
    x, y = waves
    models = [LightWaves(LightWavesSettings(features=40, before=120, shards=n)).fit(x, y) for n in (1, 2, 3)]
    assert (models[0].rows == models[1].rows).all()
    assert (models[0].rows == models[2].rows).all()


def test_saved_models_are_small_and_equal(waves, tmp_path):
    x, y = waves
    model = LightWaves(SMALL).fit(x, y)
    model.save(tmp_path / "m.safetensors")
    again = LightWaves.load(tmp_path / "m.safetensors")
    assert (again.decision(x) == model.decision(x)).all()
    assert (again.predict(x) == model.predict(x)).all()
    tensors = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    head = 4 * (model.weights.size + model.bias.size)
    assert (
        sum(tensor.nbytes for tensor in tensors.values()) == 5 * len(model.rows) + 8 * len(model.used_channels) + head
    )
    raw = bytearray((tmp_path / "m.safetensors").read_bytes())
    (tmp_path / "cut").write_bytes(raw[:-9])
    with pytest.raises(ArtifactError, match="damaged"):
        LightWaves.load(tmp_path / "cut")


def test_refusals(waves):
    x, y = waves
    with pytest.raises(DataError, match="two classes"):
        LightWaves(SMALL).fit(x, np.zeros(120))
    with pytest.raises(DataError, match="shape"):
        LightWaves(SMALL).fit(x[0], y)
    with pytest.raises(DataError, match="NaN"):
        LightWaves(SMALL).fit(np.where(x > 2, np.nan, x), y)
    with pytest.raises(DataError, match="no feature varies"):
        LightWaves(SMALL).fit(np.ones((10, 1, 20)), np.arange(10) % 2)
    model = LightWaves(SMALL).fit(x, y)
    with pytest.raises(DataError, match=r"\[n, 3, 41\]"):
        model.predict(x[..., :-1])
    with pytest.raises(DataError, match="call fit first"):
        LightWaves().predict(x)
    with pytest.raises(ConfigError, match="before"):
        LightWavesSettings(features=10, before=5)
