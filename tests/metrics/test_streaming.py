"""Streamed metrics equal scikit-learn's whatever the chunks, their order, ties, weights and the memory allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.errors import OutputError, TaskError
from lessen.metrics import (
    AUC,
    CALIBRATION_RATIO,
    GAUC,
    LOGLOSS,
    RELATIVE_INFORMATION_GAIN,
    Outcomes,
    StreamedClicks,
    calibration_bins,
)
from lessen.metrics.calibration import wilson

reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference implementation")


def drawn(seed: int, rows: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    scores = (6 * generator.integers(0, levels, rows) / levels - 3).astype(np.float32)
    labels = generator.integers(0, 2, rows).astype(np.float64)
    labels[:2] = [0, 1]
    weights = generator.integers(0, 4, rows) / 2
    weights[:2] = 1.0
    groups = generator.integers(-2, 3, rows)
    groups[:2] = 0
    return scores, labels, weights, groups


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 300),
    st.integers(1, 400),
    st.integers(2, 80),
    st.integers(1, 60),
    st.booleans(),
    st.booleans(),
)
def test_equals_scikit_learn_for_any_chunks_and_any_memory(
    seed: int, rows: int, levels: int, limit: int, chunk: int, weighted: bool, grouped: bool
) -> None:
    scores, labels, weights, groups = drawn(seed, rows, levels)
    targets = np.stack([labels, weights], 1) if weighted else labels
    order = np.random.default_rng(seed + 1).permutation(rows)
    streams = [StreamedClicks(limit), StreamedClicks(limit)]
    for number, start in enumerate(range(0, rows, chunk)):
        part = order[start : start + chunk]
        streams[number % 2].add(scores[part], targets[part], groups[part] if grouped else None)
    streams[0].merge(streams[1])
    found, own = streams[0].result(), weights if weighted else np.ones(rows)
    chance = 1 / (1 + np.exp(-scores.astype(np.float64)))
    assert streams[0].examples == rows
    assert found["auc"] == pytest.approx(reference.roc_auc_score(labels, scores, sample_weight=own), abs=1e-9)
    assert found["logloss"] == pytest.approx(reference.log_loss(labels, chance, sample_weight=own), abs=1e-9)
    base = np.full(rows, np.average(labels, weights=own))
    entropy = reference.log_loss(labels, base, sample_weight=own)
    assert found["rig"] == pytest.approx(1 - found["logloss"] / entropy, abs=1e-9)
    assert found["calibration_ratio"] == pytest.approx((own @ chance) / (own @ labels), abs=1e-9)
    for metric in (AUC, LOGLOSS, RELATIVE_INFORMATION_GAIN, CALIBRATION_RATIO):  # in memory and streamed agree
        assert found[metric.name] == pytest.approx(metric(scores, targets), abs=1e-9)
    if grouped:
        assert found["gauc"] == pytest.approx(GAUC(Outcomes({"score": scores, "target": targets}, groups)), abs=1e-9)


def test_chunks_that_do_not_fit_go_to_disk_and_vanish(tmp_path: Path) -> None:
    scores, labels, _, _ = drawn(0, 5_000, 10**6)
    stream = StreamedClicks(400, tmp_path)
    stream.add(scores, labels)
    assert len(list(tmp_path.rglob("*.rows"))) > 10
    assert stream._buffered <= 400
    before = stream.result()
    assert before["auc"] == pytest.approx(AUC(scores, labels), abs=1e-12)
    stream.add(scores, labels)  # everything twice changes no mean
    assert stream.result() == pytest.approx(before, abs=1e-12)
    del stream
    assert not list(tmp_path.iterdir())


def test_bad_chunks_are_refused(tmp_path: Path) -> None:
    stream = StreamedClicks()
    for scores, targets, groups, message in (
        ([0.0, 1.0], [0.0, 2.0], None, "labels must be 0 or 1"),
        ([0.0], [0.0, 1.0], None, "1 scores for 2 labels"),
        ([0.0], [[1.0, -1.0]], None, "weight of an example is negative"),
        ([np.nan], [1.0], None, "NaN or infinite"),
        ([0.0], [1.0], [1, 2], "2 groups for 1 scores"),
    ):
        with pytest.raises(TaskError, match=message):
            stream.add(np.array(scores), np.array(targets), None if groups is None else np.array(groups))
    stream.add(np.array([0.5, 0.1]), np.array([1.0, 1.0]))
    with pytest.raises(TaskError, match="needs both classes"):
        stream.result()
    with pytest.raises(TaskError, match="every chunk or with none"):
        stream.add(np.array([0.5]), np.array([0.0]), np.array([3]))
    blocked = StreamedClicks(2, tmp_path / "absent")
    with pytest.raises(OutputError, match="cannot write"):
        blocked.add(np.array([0.1, 0.2, 0.3]), np.array([0.0, 1.0, 0.0]))


def test_weights_of_examples_are_repetition_in_every_metric() -> None:
    scores, labels, _, groups = drawn(3, 80, 30)
    counts = np.random.default_rng(0).integers(0, 4, 80)
    counts[:2] = 1
    again = np.repeat(np.arange(80), counts)
    weighted = np.stack([labels, counts.astype(np.float32)], 1)
    once = Outcomes({"score": scores, "target": weighted}, groups)
    often = Outcomes({"score": scores[again], "target": labels[again]}, groups[again])
    for metric in (AUC, LOGLOSS, RELATIVE_INFORMATION_GAIN, CALIBRATION_RATIO, GAUC):
        assert metric(once) == pytest.approx(metric(often), abs=1e-12)
    with pytest.raises(TaskError, match=r"only no examples|weights of the examples are zero"):
        AUC(scores, np.stack([labels, np.zeros(80)], 1))
    with pytest.raises(TaskError, match="weights of the examples are zero"):
        LOGLOSS(scores, np.stack([labels, np.zeros(80)], 1))


def test_bins_carry_wilsons_interval() -> None:
    low, high = wilson(0.1, 100)  # the published example: 10 of 100
    assert (low, high) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    assert wilson(0.0, 50)[0] == 0.0
    generator = np.random.default_rng(0)
    chance = generator.uniform(0.02, 0.6, 40_000)
    logits, labels = np.log(chance / (1 - chance)), (generator.random(40_000) < chance).astype(float)
    bins = calibration_bins(logits, labels, 20)
    assert sum(part.covered for part in bins) >= 16
    assert not any(part.covered for part in calibration_bins(logits + 0.7, labels, 20))
    doubled = calibration_bins(logits, np.stack([labels, np.full(40_000, 2.0)], 1), 20)
    assert doubled[3].low == pytest.approx(bins[3].low)
