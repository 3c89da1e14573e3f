"""What `save` accepts is what `resume` finds: steps that it could not find, or would pass over, are refused at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lessen.checkpoints import PackSettings, find_snapshots, pack
from lessen.checkpoints.hooks import trainer_callback
from lessen.checkpoints.manager import CheckpointManager
from lessen.errors import ConfigError, DataError

STATE = {"w": torch.arange(12.0).reshape(3, 4)}


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """A manager whose states are never packed."""
    made = CheckpointManager(tmp_path / "run")
    monkeypatch.setattr(made, "_queue", lambda path: None)
    return made


@pytest.mark.parametrize("step", [-1, 1.5, 3.0, "3", "../x", True, None])
def test_a_step_that_resume_could_not_find_is_refused(manager, step):
    with pytest.raises(ConfigError, match="is not accepted: resume finds states by it"):
        manager.save(step, STATE)
    assert manager.resume() is None
    assert not list(manager.folder.parent.rglob("*.pt"))


@pytest.mark.parametrize("step", [0, 7, np.int64(7), torch.tensor(7)])
def test_whole_numbers_of_any_kind_come_back(manager, step):
    manager.save(step, STATE | {"step": step})
    state = manager.resume()
    assert state["step"] == int(step)
    assert type(state["step"]) is int
    assert torch.equal(state["w"], STATE["w"])


@pytest.mark.parametrize("told", [5, "x", np.array([1, 2])])
def test_a_state_that_tells_another_step_is_refused(manager, told):
    """It would be packed under the one and looked for under the other."""
    with pytest.raises(ConfigError, match="save was given 100: name one step"):
        manager.save(100, STATE | {"step": told})


@pytest.mark.parametrize("state", [None, [1], 3])
def test_a_state_without_names_is_refused(manager, state):
    with pytest.raises(DataError, match="a state is a mapping of names to values"):
        manager.save(1, state)


def test_a_run_that_went_back_is_told_before_anything_is_written(manager):
    for step in (1, 2, 3):
        manager.save(step, STATE)
    with pytest.raises(ConfigError, match="step 2 comes before step 3.*--keep-before 2, and move later files"):
        manager.save(2, STATE)
    with pytest.raises(ConfigError, match="comes before step 3"):
        CheckpointManager(manager.folder).save(2, STATE)
    (manager.full / "step-3.pt").write_bytes(b"cut")  # nothing that resume would return
    manager.save(2, STATE)
    pack(find_snapshots([manager.save(4, STATE)]), manager.archive, PackSettings(mode="exact"))
    (manager.full / "step-4.pt").unlink()
    with pytest.raises(ConfigError, match="step 3 comes before step 4"):
        CheckpointManager(manager.folder).save(3, STATE)


@pytest.mark.parametrize("keep", [0, 1.5, "2", True])
def test_how_many_stay_whole_is_a_whole_number(tmp_path, keep):
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="keep_full = .* must stay whole"):
        CheckpointManager(tmp_path, keep_full=keep)
    with pytest.raises(ConfigError, match="keep_full = .* must stay whole"):
        trainer_callback(tmp_path, keep_full=keep)


def test_the_former_name_stays_for_scripts_that_use_it():
    from lessen.checkpoints.keeper import CheckpointKeeper

    assert CheckpointKeeper is CheckpointManager
