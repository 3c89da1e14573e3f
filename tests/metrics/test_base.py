"""Metrics equal scikit-learn's, weights mean repetition, and undefined values are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessen.errors import TaskError
from lessen.metrics import ACCURACY, AUC, LOGLOSS, MSE, Outcomes, bootstrap_weights

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference implementation")


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.integers(1, 20))
def test_auc_equals_scikit_learn_with_ties(seed, examples, levels):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, examples).astype(np.float32)
    labels = generator.integers(0, 2, examples)
    labels[:2] = [0, 1]
    assert AUC(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-9)


def test_integer_weights_mean_repetition():
    generator = np.random.default_rng(1)
    scores, labels = generator.normal(size=50), generator.integers(0, 2, 50)
    counts = generator.integers(0, 4, 50)
    repeated = np.repeat(np.arange(50), counts)
    for metric in (AUC, LOGLOSS):
        weighted = metric.weighted(Outcomes({"score": scores, "target": labels}), counts[None].astype(float))[0]
        assert weighted == pytest.approx(metric(scores[repeated], labels[repeated]), abs=1e-12)


def test_logloss_equals_scikit_learn_and_does_not_overflow():
    scores, labels = np.array([-800.0, 3.0, 0.5, 900.0]), np.array([0, 1, 0, 1])
    expected = metrics.log_loss(labels, 1 / (1 + np.exp(-np.clip(scores, -30, 30))), normalize=True)
    assert LOGLOSS(scores, labels) == pytest.approx(expected, abs=1e-9)


def test_accuracy_and_mse():
    assert ACCURACY(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])) == 0.5
    assert MSE(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == 2.0


def test_one_class_is_refused_by_name():
    with pytest.raises(TaskError, match="both classes"):
        AUC(np.array([0.1, 0.2]), np.array([1, 1]))


def test_labels_outside_zero_and_one_are_refused():
    with pytest.raises(TaskError, match="0 or 1"):
        LOGLOSS(np.array([0.1, 0.2]), np.array([1, 3]))


def test_bootstrap_rows_are_resamples():
    weights = bootstrap_weights(40, 25, seed=3)
    assert weights.shape == (25, 40)
    assert (weights.sum(axis=1) == 40).all()
    assert np.array_equal(weights, bootstrap_weights(40, 25, seed=3))


def test_large_sets_are_dealt_into_fewer_groups_and_few_weights_are_held(monkeypatch):
    from lessen.metrics import GAUC, base

    monkeypatch.setattr(base, "LARGE", 400)
    monkeypatch.setattr(base, "_HELD", 1000)
    generator, shapes = np.random.default_rng(0), []
    outcomes = Outcomes(
        {"score": generator.normal(size=500), "target": generator.integers(0, 2, 500)}, generator.integers(0, 9, 500)
    )
    whole = GAUC.weighted
    monkeypatch.setattr(type(GAUC), "weighted", lambda self, o, w: shapes.append(w.shape) or whole(o, w))
    assert len(GAUC.jackknife(outcomes)) == 1 + base.FEW_GROUPS
    assert max(rows * units for rows, units in shapes) <= 1000
