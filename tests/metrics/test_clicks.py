"""gAUC, relative information gain and calibration against plain loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessen.errors import TaskError
from lessen.metrics import (
    CALIBRATION_RATIO,
    GAUC,
    RELATIVE_INFORMATION_GAIN,
    Outcomes,
    calibration_bins,
    calibration_error,
)

reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference implementation")


def outcomes(scores, labels, groups) -> Outcomes:
    return Outcomes({"score": scores, "target": labels}, groups)


@given(st.integers(0, 2**32 - 1), st.integers(4, 200), st.integers(1, 8), st.integers(1, 6))
def test_gauc_equals_a_loop_over_groups_with_ties(seed: int, rows: int, levels: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    groups, scores = generator.integers(0, count, rows), generator.integers(0, levels, rows).astype(np.float32)
    labels = generator.integers(0, 2, rows)
    groups[:2], labels[:2] = 0, [0, 1]
    total = weight = 0.0
    for group in np.unique(groups):
        mine = groups == group
        if 0 < labels[mine].mean() < 1:
            total += mine.sum() * reference.roc_auc_score(labels[mine], scores[mine])
            weight += mine.sum()
    assert GAUC(outcomes(scores, labels, groups)) == pytest.approx(total / weight, abs=1e-9)


def test_gauc_weights_mean_repetition_and_names_of_groups_do_not_matter() -> None:
    generator = np.random.default_rng(1)
    scores, labels, groups = generator.normal(size=60), generator.integers(0, 2, 60), generator.integers(0, 4, 60)
    counts = generator.integers(0, 4, 60)
    again = np.repeat(np.arange(60), counts)
    weighted = GAUC.weighted(outcomes(scores, labels, groups), counts[None].astype(float))[0]
    named = np.array(["d", "b", "a", "c"])[groups]
    repeated = GAUC(outcomes(scores[again], labels[again], named[again]))
    assert weighted == pytest.approx(repeated, abs=1e-12)


def test_gauc_refuses_wrong_lengths_and_groups_of_one_class() -> None:
    scores, labels = np.array([0.0, 1.0]), np.array([0, 1])
    with pytest.raises(TaskError, match="score 2, target 2, group 3"):
        outcomes(scores, labels, np.array([1, 2, 3]))
    with pytest.raises(TaskError, match="every group holds one class"):
        GAUC(outcomes(scores, labels, np.array([1, 2])))
    with pytest.raises(TaskError, match="no column 'group'; it gives score, target"):
        GAUC(scores, labels)


def test_information_gain_is_zero_for_the_base_rate_and_one_for_certainty() -> None:
    labels = np.array([0, 0, 0, 1])
    gain = RELATIVE_INFORMATION_GAIN
    assert gain(np.full(4, np.log(0.25 / 0.75)), labels) == pytest.approx(0.0, abs=1e-12)
    assert gain(np.where(labels, 50.0, -50.0), labels) == pytest.approx(1.0)
    scores = np.random.default_rng(0).normal(size=4)
    chance = 1 / (1 + np.exp(-scores))
    entropy = reference.log_loss(labels, np.full(4, 0.25))
    assert gain(scores, labels) == pytest.approx(1 - reference.log_loss(labels, chance) / entropy, abs=1e-9)


def test_calibration_ratio_bins_and_error() -> None:
    generator = np.random.default_rng(0)
    chance = generator.uniform(0.05, 0.95, 20_000)
    logits, labels = np.log(chance / (1 - chance)), generator.random(20_000) < chance
    assert CALIBRATION_RATIO(logits, labels) == pytest.approx(1.0, abs=0.02)
    assert CALIBRATION_RATIO(logits, labels) == pytest.approx(chance.sum() / labels.sum(), abs=1e-9)
    bins = calibration_bins(logits, labels, 7)
    assert sum(part.examples for part in bins) == 20_000
    lowest = np.argsort(chance)[: bins[0].examples]
    assert bins[0].expected == pytest.approx(chance[lowest].mean())
    assert bins[0].observed == pytest.approx(labels[lowest].mean())
    assert calibration_error(logits, labels) < 0.02 < 0.1 < calibration_error(logits + 1.0, labels)
    assert len(calibration_bins(np.array([0.0, 1.0]), np.array([0, 1]))) == 2
