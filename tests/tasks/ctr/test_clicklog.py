from __future__ import annotations

import numpy as np
import pytest
import torch

from lessen.errors import ConfigError
from lessen.metrics import AUC
from lessen.tasks import get_task
from lessen.tasks.ctr.clicklog import (
    FACTORS,
    HOT,
    ClickLog,
    ClickLogOptions,
    expected_auc,
    field_sizes,
    kept_normals,
    planted_normals,
    zipf_ranks,
)

SMALL = ClickLogOptions(ids=2000, fields=4, rows=8000, held_out=4000, epochs=3, batch_size=256)


def joined(task, split, seed=0):
    ids, labels = zip(*((inputs["ids"], label) for inputs, label in task.batches(split, seed)), strict=True)
    return torch.cat(ids), torch.cat(labels)


def test_the_same_rows_come_in_another_order_for_another_seed():
    first, second = ClickLog(SMALL), ClickLog(SMALL)
    (a, labels_a), (b, labels_b) = joined(first, "train", 1), joined(second, "train", 2)
    assert not torch.equal(a, b)
    assert sorted(zip(map(tuple, a.tolist()), labels_a.tolist(), strict=True)) == sorted(
        zip(map(tuple, b.tolist()), labels_b.tolist(), strict=True)
    )
    assert torch.equal(joined(first, "train", 1)[0], a)
    assert not torch.equal(joined(first, "test")[0][:100], joined(first, "validation")[0][:100])


def test_every_field_has_the_ids_it_should_and_stays_in_its_rows():
    assert sum(field_sizes(100_000, 8)) == 100_000
    task = ClickLog(SMALL)
    assert task.layout.rows == 2000 + 4 + 1
    ids, _ = joined(task, "train")
    for number, segment in enumerate(task.layout.segments):
        assert int(ids[:, number].min()) > segment.start  # the first row is for unknown ids
        assert int(ids[:, number].max()) < segment.start + segment.rows


def test_ranks_follow_the_power_law():
    uniform = np.random.default_rng(0).random(200_000)
    for exponent in (0.8, 1.0, 1.2):
        ranks = zipf_ranks(uniform, 5000, exponent)
        assert 0 <= ranks.min() <= ranks.max() < 5000
        seen = np.bincount(ranks, minlength=5000)
        lows = np.arange(1, 5001.0)
        mass = np.array(
            [np.trapezoid(np.linspace(k, k + 1, 50) ** -exponent, np.linspace(k, k + 1, 50)) for k in lows[:50]]
        )
        assert np.allclose(seen[:50] / seen[:50].sum(), mass / mass.sum(), atol=0.005)
    assert zipf_ranks(np.array([0.0, 1.0]), 10_000_000, 1.2).tolist() == [0, 9_999_999]


def test_planted_numbers_are_normal_and_belong_to_the_id():
    drawn = planted_normals(np.arange(100_000), 3, 2)
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1.0) < 0.01
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.01
    assert np.array_equal(planted_normals(np.array([77]), 3, 2)[0], drawn[77])
    assert not np.array_equal(planted_normals(np.array([77]), 4, 2)[0], drawn[77])


def test_the_best_auc_is_the_mean_over_labels_and_ties_count_half():
    p = np.array([0.1, 0.4, 0.4, 0.9, 0.7])
    rng, total, weight = np.random.default_rng(0), 0.0, 0.0
    for _ in range(20_000):
        label = (rng.random(5) < p).astype(float)
        pairs = label.sum() * (1 - label).sum()
        if pairs:
            total, weight = total + AUC(p, label) * pairs, weight + pairs
    assert expected_auc(p) == pytest.approx(total / weight, abs=0.005)
    assert expected_auc(np.full(9, 0.3)) == pytest.approx(0.5)
    task = ClickLog(SMALL)
    _, label = joined(task, "test")
    assert AUC(task.probabilities(), label.numpy()) == pytest.approx(task.best_auc, abs=0.03)


def test_a_model_learns_it_but_does_not_beat_the_truth():
    task = ClickLog(SMALL)
    torch.manual_seed(0)
    model = task.build()
    task.train(model, seed=0)
    assert 0.65 < task.score(model, "test") < task.best_auc + 0.01


def test_it_is_built_by_name_and_refuses_sizes_that_make_no_sense():
    assert get_task({"name": "ctr-clicklog", "ids": 1000}).layout.rows == 1000 + 8 + 1
    with pytest.raises(ConfigError, match="at least 2560 ids"):
        get_task({"name": "ctr-clicklog", "ids": 1000, "fields": 64})


def test_kept_numbers_are_the_drawn_ones():
    ids = np.array([0, 5, HOT - 1, HOT, HOT + 1, 3 * HOT, 5])
    assert np.array_equal(kept_normals(ids, 9), planted_normals(ids, 9, FACTORS + 1))
