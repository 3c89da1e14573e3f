from __future__ import annotations

import numpy as np
import pytest
import torch

from lessen.data.columns import Columns
from lessen.errors import ConfigError, TaskError
from lessen.metrics import AUC
from lessen.tasks import get_task
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions


@pytest.mark.parametrize("model", ["deepfm", "dcnv2"])
def test_trains_to_between_chance_and_the_best_possible(model: str) -> None:
    task = SyntheticClicks(SyntheticOptions(model=model, rows_per_field=50))  # type: ignore[arg-type]
    scores, labels = task.predictions(task.reference(seed=0))
    auc = AUC(scores, labels)
    assert 0.82 < auc < task.best_auc
    assert task.best_auc > 0.9


def test_data_is_the_same_each_time_and_another_with_another_seed() -> None:
    assert SyntheticClicks().fingerprint() == SyntheticClicks().fingerprint()
    assert SyntheticClicks().fingerprint() != SyntheticClicks(SyntheticOptions(seed=1)).fingerprint()


def test_train_order_depends_on_the_seed_only() -> None:
    task = SyntheticClicks(SyntheticOptions(rows=600))
    first, again, other = (torch.cat([b[0]["ids"] for b in task.batches("train", seed)]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.sort(0).values, other.sort(0).values)


def test_ids_stay_inside_their_segment_and_skip_its_unseen_row() -> None:
    task = SyntheticClicks(SyntheticOptions(rows=3000, noise_fields=2))
    ids = torch.cat([b[0]["ids"] for b in task.batches("test")]).numpy()
    assert ids.dtype == np.int32
    for column, segment in enumerate(task.layout.segments):
        assert ids[:, column].min() > segment.start
        assert ids[:, column].max() < segment.start + segment.rows


def test_noise_fields_change_neither_labels_nor_best_auc_range() -> None:
    plain, noisy = SyntheticClicks(), SyntheticClicks(SyntheticOptions(noise_fields=3))
    assert noisy.layout.width == plain.layout.width + 3
    assert noisy.best_auc > 0.85


def test_single_class_validation_set_is_one_clear_error() -> None:
    task = SyntheticClicks(SyntheticOptions(rows=600))
    part = task.splits["validation"]
    task.splits["validation"] = Columns(part.ids, torch.ones(len(part)), part.layout)
    with pytest.raises(TaskError, match=r"AUC needs both classes, the labels hold only \[1.0\]"):
        task.train(task.build())


def test_empty_splits_are_clear_errors() -> None:
    task = SyntheticClicks(SyntheticOptions(rows=600))
    empty = task.splits["train"].select(np.zeros(0, dtype=np.int64))
    task.splits["train"] = empty
    with pytest.raises(TaskError, match="train split is empty"):
        task.train(task.build())
    task.splits["test"] = empty
    with pytest.raises(TaskError, match="empty test split"):
        task.predictions(task.build())


def test_registered_with_options_checked_by_name() -> None:
    task = get_task({"name": "ctr-synthetic", "rows": 100})
    assert task.describe()["rows"] == 100
    with pytest.raises(ConfigError, match="did you mean 'rows'"):
        get_task({"name": "ctr-synthetic", "rowz": 100})
