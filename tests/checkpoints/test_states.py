from __future__ import annotations

import argparse
import collections
import datetime
import fractions
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from breaking_files import FailingFiles
from lessen import files
from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
from lessen.checkpoints.manager import CheckpointManager
from lessen.checkpoints.states import load_state, write_state
from lessen.errors import ArtifactError, DataError, OutputError

HARMLESS = {
    "float64": np.float64(0.5), "float32": np.float32(2), "int": np.int64(7), "bool": np.bool_(True),
    "array": np.arange(6).reshape(2, 3), "words": np.array(["a", "b"]), "mean": np.mean([0.8, 0.9]),
    "args": argparse.Namespace(lr=0.1), "space": types.SimpleNamespace(a=1), "path": Path("runs/x"),
    "when": datetime.datetime(2026, 11, 30), "took": datetime.timedelta(3), "third": fractions.Fraction(1, 3),
    "set": {1, 2}, "counts": collections.Counter("aab"), "z": complex(1, 2), "range": range(4), "dtype": torch.float32,
    "size": torch.Size([1, 2]), "ordered": collections.OrderedDict(a=1), "none": None, "bytes": b"xyz",
}  # fmt: skip


def manager_without_packer(folder) -> CheckpointManager:
    manager = CheckpointManager(folder)
    manager._queue = lambda path: None
    return manager


def test_what_trainings_put_into_a_state_comes_back(tmp_path):
    manager = manager_without_packer(tmp_path / "run")
    manager.save(1, HARMLESS)
    back = CheckpointManager(tmp_path / "run").resume()
    assert back.keys() == {"step", *HARMLESS}
    for name, value in HARMLESS.items():
        assert type(back[name]) is type(value), name
        assert np.array_equal(back[name], value) if isinstance(value, np.ndarray) else back[name] == value, name


def test_such_a_state_can_be_packed_and_resumed_from_the_archive(tmp_path):
    manager = manager_without_packer(tmp_path / "run")
    for step in (1, 2):
        manager.save(step, {"best_auc": np.mean([0.8, 0.81 + step]), "model": {"w": torch.ones(40) * step}})
    pack(find_snapshots([tmp_path / "run" / "full"]), tmp_path / "run" / "archive", PackSettings(mode="exact"))
    assert Archive(tmp_path / "run" / "archive").steps == [1, 2]
    for file in (tmp_path / "run" / "full").iterdir():
        file.unlink()
    assert CheckpointManager(tmp_path / "run").resume()["best_auc"] == pytest.approx(1.805)


class Mine:
    """A class of the user's."""


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({"good": 1, "trainer": {"config": [1, Mine()]}}, r"'trainer/config/1'.*Mine"),
        ({"hook": lambda: 0}, r"'hook'.*function"),
        ({"lock": threading.Lock()}, r"'lock'.*lock"),
        ({"queue": collections.deque([1])}, r"'queue'.*deque"),
    ],
)
def test_what_a_resume_could_not_read_is_refused_by_name_at_once(tmp_path, state, name):
    manager = manager_without_packer(tmp_path / "run")
    manager.save(1, {"w": torch.ones(2)})
    with pytest.raises(DataError, match=f"state entry {name}"):
        manager.save(2, {"w": torch.ones(2), **state})
    assert [path.name for path in (tmp_path / "run" / "full").iterdir()] == ["step-1.pt"]
    assert CheckpointManager(tmp_path / "run").resume()["step"] == 1


def test_a_full_disk_is_said_as_such_whatever_torch_makes_of_it(tmp_path, monkeypatch):
    state = {"w": torch.ones(20_000), "v": torch.ones(20_000)}
    for fail_at in range(1, 90):
        with monkeypatch.context() as patch:
            patch.setattr(files, "FILES", FailingFiles(fail_at))
            try:
                write_state(tmp_path / "s.pt", state)
            except OutputError as error:
                assert "No space left" in str(error)
                assert not list(tmp_path.glob(f"{files.TEMPORARY}*"))
                continue
        break
    assert 4 < fail_at < 89
    assert torch.equal(load_state(tmp_path / "s.pt")["w"], state["w"])


def test_a_training_whose_states_are_all_unreadable_does_not_silently_start_over(tmp_path):
    manager = manager_without_packer(tmp_path / "run")
    manager.save(1, {"w": torch.ones(2)})
    (tmp_path / "run" / "full" / "step-1.pt").write_bytes(b"cut")
    with pytest.warns(RuntimeWarning, match=r"step-1\.pt"), pytest.raises(ArtifactError, match="none of the states"):
        CheckpointManager(tmp_path / "run").resume()


def test_a_reader_makes_no_folder(tmp_path):
    assert CheckpointManager(tmp_path / "run").resume() is None
    assert not (tmp_path / "run").exists()
