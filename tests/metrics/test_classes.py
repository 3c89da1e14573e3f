"""Metrics of classes against scikit-learn and plain loops, under weights and without groups of examples."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessen.errors import TaskError
from lessen.metrics import (
    ACCURACY,
    ClassRecall,
    ExpectedCalibrationError,
    MacroF1,
    MacroRecall,
    Metric,
    Outcomes,
    TopAccuracy,
    find_metric,
)

reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference implementation")


def drawn(seed: int, n: int, classes: int) -> Outcomes:
    generator = np.random.default_rng(seed)
    target = generator.integers(0, classes, n)
    target[:classes] = np.arange(classes)
    scores = generator.normal(size=(n, classes)) + 1.5 * np.eye(classes)[target]
    return Outcomes({"score": np.round(scores, 1), "target": target})


@given(st.integers(0, 2**32 - 1), st.integers(3, 6), st.integers(8, 120))
def test_they_equal_scikit_learn(seed, classes, n):
    outcomes = drawn(seed, n, classes)
    target, answer = outcomes["target"], np.argmax(outcomes["score"], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.f1_score(target, answer, average="macro", zero_division=0)
    assert MacroF1()(outcomes) == pytest.approx(expected)
    assert MacroRecall()(outcomes) == pytest.approx(reference.balanced_accuracy_score(target, answer))
    each = reference.recall_score(target, answer, average=None, labels=np.arange(classes), zero_division=0)
    assert [ClassRecall(label)(outcomes) for label in range(classes)] == pytest.approx(list(each))
    assert TopAccuracy(1)(outcomes) == ACCURACY(outcomes) == reference.accuracy_score(target, answer)


def test_top_k_equals_scikit_learn_without_ties_and_takes_lower_classes_first_with_them():
    generator = np.random.default_rng(2)
    scores, target = generator.normal(size=(300, 10)), generator.integers(0, 10, 300)
    for k in (1, 3, 5):
        expected = reference.top_k_accuracy_score(target, scores, k=k, labels=np.arange(10))
        assert TopAccuracy(k)(scores, target) == pytest.approx(expected)
    assert TopAccuracy(2)(np.zeros((3, 4)), np.array([0, 1, 2])) == pytest.approx(2 / 3)
    assert find_metric("top@5").title == "top-5 accuracy"


def test_calibration_error_equals_a_loop_over_bins():
    outcomes = drawn(5, 500, 4)
    scores = np.exp(outcomes["score"])
    chance = scores / scores.sum(axis=1, keepdims=True)
    confidence, right = chance.max(axis=1), chance.argmax(axis=1) == outcomes["target"]
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert ExpectedCalibrationError()(outcomes) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    "metric", [TopAccuracy(2), ClassRecall(1), MacroRecall(), MacroF1(), ExpectedCalibrationError()]
)
def test_weights_mean_repetition_and_groups_left_out_are_weights_of_nothing(metric):
    outcomes, generator = drawn(9, 90, 4), np.random.default_rng(1)
    counts = generator.integers(0, 4, 90)
    again = np.repeat(np.arange(90), counts)
    often = Outcomes({name: column[again] for name, column in outcomes.columns.items()})
    assert metric.weighted(outcomes, counts[None].astype(float))[0] == pytest.approx(metric(often), abs=1e-12)
    own = Outcomes({**outcomes.columns, "weight": counts.astype(float)})
    assert metric(own) == pytest.approx(metric(often), abs=1e-12)
    groups = generator.integers(0, 7, 90)
    naive = Metric.left_out(metric, own, groups, 7)
    np.testing.assert_allclose(metric.left_out(own, groups, 7), naive, atol=1e-12)


def test_a_class_that_is_not_there_is_named():
    with pytest.raises(TaskError, match="class 9 does not exist"):
        ClassRecall(9)(drawn(0, 20, 4))
    with pytest.raises(TaskError, match="do not fit targets"):
        MacroF1()(np.zeros((3, 2)), np.array([0, 1, 2]))
