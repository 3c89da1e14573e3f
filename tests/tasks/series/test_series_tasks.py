"""Tasks of series: splits that do not overlap, options checked, the same series each time."""

from __future__ import annotations

import pytest
import torch

from lessen.data import ucr
from lessen.errors import ConfigError, TaskError
from lessen.tasks import get_task
from lessen.tasks.series.ucr import UcrTask

TS = "@problemName x\n@classLabel true a b\n@data\n"


def test_waves_are_the_same_each_time_and_splits_are_apart():
    task, again = (get_task({"name": "series-waves", "rows": 60, "length": 20}) for _ in range(2))
    assert task.fingerprint() == again.fingerprint()
    parts = [task.split(name).values for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [20, 20, 20]
    assert len(torch.unique(torch.cat(parts), dim=0)) == 60
    assert task.describe()["rows"] == 60


def test_mistakes_are_named():
    with pytest.raises(TaskError, match="5 of 4 channels"):
        get_task({"name": "series-waves", "told": 5})
    with pytest.raises(TaskError, match="no split 'dev'"):
        get_task("series-waves").split("dev")
    with pytest.raises(ConfigError, match="GunPoint"):
        get_task({"name": "series-ucr", "dataset": "GunPiont"})


@pytest.fixture
def published(monkeypatch):
    texts = {
        "TRAIN": TS + "".join(f"{n},1,2:3,{n},{n}:{'ab'[n % 2]}\n" for n in range(20)),
        "TEST": TS + "1,2:3,4:b\n1,2,3,4:5,6,7,8:a\n",
    }
    monkeypatch.setattr(ucr, "read", lambda name, member, log: texts[member.rpartition("_")[2][:-3]].encode())


def test_a_set_is_padded_cut_and_held_out_by_class(published):
    task = UcrTask()
    assert task.classes == 2
    train, held, test = (task.split(name) for name in ("train", "validation", "test"))
    assert (len(train.classes), held.classes.bincount().tolist()) == (16, [2, 2])
    assert not set(held.values[:, 0, 0].tolist()) & set(train.values[:, 0, 0].tolist())
    assert test.values[:, 0].tolist() == [[1, 2, 0], [1, 2, 3]]
    assert test.classes.tolist() == [1, 0]
    assert "zeros fill the shorter" in task.notes()[0]
