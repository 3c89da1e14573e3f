from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from lessen.data.columns import Columns, IdField, Layout
from lessen.errors import MissingExtraError
from lessen.metrics import AUC
from lessen.stored.fields import Segment
from lessen.tasks.ctr.baselines import _mean_label, _one_hot, gradient_boosting, logistic_regression
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions


def test_quality_of_each_baseline_lies_between_chance_and_the_best_with_its_interval_around_it() -> None:
    task = SyntheticClicks(SyntheticOptions(rows=6000, rows_per_field=20))
    found = task.baselines()
    assert set(found) == {"logistic regression", "gradient boosting"}
    for values in found.values():
        assert 0.6 < values["auc"] < task.best_auc
        assert values["auc_ci"][0] < values["auc"] < values["auc_ci"][1]
        assert values["logloss_ci"][0] < values["logloss"] < values["logloss_ci"][1]


def test_trees_find_the_interaction_that_logistic_regression_cannot() -> None:
    """label = XOR of two binary ids: no first-order model can rank it."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2, (4000, 2))
    layout = Layout(
        (IdField("a", "categorical", 0, 1, "a"), IdField("b", "categorical", 1, 1, "b")),
        (Segment("a", 1, 3), Segment("b", 4, 3)),
    )
    ids = (bits + np.array([2, 5])).astype(np.int32)
    label = (bits[:, 0] ^ bits[:, 1]).astype(np.float32)
    columns = Columns(torch.from_numpy(ids), torch.from_numpy(label), layout)
    parts = zip(("train", "validation", "test"), np.split(np.arange(4000), [2000, 3000]), strict=True)
    splits = {name: columns.select(rows) for name, rows in parts}
    label = splits["test"].label.numpy()  # type: ignore[index]
    assert AUC(gradient_boosting(splits), label) > 0.99  # type: ignore[arg-type]
    assert AUC(logistic_regression(splits), label) < 0.6  # type: ignore[arg-type]


def test_one_hot_gives_shares_and_leaves_padding_out() -> None:
    layout = Layout((IdField("tags", "multi", 0, 3, "tags"),), (Segment("tags", 1, 5),))
    columns = Columns(torch.tensor([[2, 4, 0], [0, 0, 0]], dtype=torch.int32), torch.zeros(2), layout)
    assert _one_hot(columns, sequences=True).toarray().tolist() == [[0, 0, 0.5, 0, 0.5, 0], [0] * 6]


def test_mean_label_is_shrunken_and_missing_without_ids() -> None:
    known, label = np.array([[1], [1], [2]], dtype=np.int32), np.array([1.0, 1.0, 0.0])
    found = _mean_label(known, label, np.array([[1], [2], [3], [0]], dtype=np.int32), 4)
    prior = 2 / 3
    assert found[:3].tolist() == pytest.approx([(2 + 10 * prior) / 12, (10 * prior) / 11, prior])
    assert np.isnan(found[3])


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"lessen\[baselines\]"):
        SyntheticClicks(SyntheticOptions(rows=100)).baselines()
