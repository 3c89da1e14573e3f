from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from breaking_files import FailingFiles
from checkpoint_runs import Net, Notes, optimizer_of, state_of, train_step
from lessen import files
from lessen.checkpoints import Archive, Packer, PackSettings, background, find_snapshots, pack
from lessen.checkpoints.manager import CheckpointManager
from lessen.checkpoints.packing_process import BackgroundPacker
from lessen.errors import ArtifactError, ConfigError, OutputError

EXACT = PackSettings(mode="exact")


@pytest.mark.usefixtures("forked")
def test_the_newest_stay_whole_and_all_are_packed(tmp_path):
    torch.manual_seed(0)
    net = Net()
    optimizer = optimizer_of(net, "adam")
    states = {}
    with CheckpointManager(tmp_path / "run", keep_full=2, settings=EXACT) as manager:
        assert manager.resume() is None
        for step in range(1, 6):
            train_step(net, optimizer, step)
            manager.save(step, state_of(net, optimizer, step))
            states[step] = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert sorted(path.name for path in (tmp_path / "run" / "full").iterdir()) == ["step-4.pt", "step-5.pt"]
    assert Archive(tmp_path / "run" / "archive").steps == [1, 2, 3, 4, 5]
    for step in (1, 3, 5):
        state = CheckpointManager(tmp_path / "run").resume(step)
        assert state["step"] == step
        for name, tensor in states[step].items():
            assert torch.equal(state["model"][name], tensor)
    with pytest.raises(ArtifactError, match="no readable step 9"):
        CheckpointManager(tmp_path / "run").resume(9)


@pytest.mark.usefixtures("forked")
def test_a_damaged_full_file_gives_way_to_the_archive_and_then_to_older_ones(tmp_path):
    notes = Notes()
    with CheckpointManager(tmp_path / "run", settings=EXACT) as manager:
        for step in (1, 2):
            manager.save(step, {"model": {"w": torch.full((8, 8), float(step))}})
    full = tmp_path / "run" / "full" / "step-2.pt"
    full.write_bytes(full.read_bytes()[:300])
    state = CheckpointManager(tmp_path / "run", log=notes).resume()
    assert state["step"] == 2
    assert "step-2.pt" in notes.lines[0]
    (tmp_path / "run" / "full" / "step-3.pt").write_bytes(b"cut")
    assert CheckpointManager(tmp_path / "run", log=notes).resume()["step"] == 2


def saved_and_seen(manager, step, state, ready):
    """Save, then wait until `ready` says that the packer is done with it."""
    manager.save(step, state)
    until = time.monotonic() + 60
    while not ready() and time.monotonic() < until:
        time.sleep(0.02)


@pytest.mark.usefixtures("forked")
def test_a_state_that_cannot_be_packed_is_told_at_once_and_the_next_ones_are_packed(tmp_path):
    notes = Notes()
    manager = CheckpointManager(tmp_path / "run", keep_full=1, settings=EXACT, log=notes)
    good = {"model": {"w": torch.ones(9, 9)}}
    manager.save(1, good)
    manager.save(2, {"model": {"other": torch.ones(4)}})  # another model: the packer refuses it
    saved_and_seen(manager, 3, good, lambda: manager._packed() == {1, 3})
    manager.save(4, good)
    assert len(notes.lines) == 1
    assert "step-2.pt is not packed" in notes.lines[0]
    assert "another model" in notes.lines[0]
    with pytest.raises(OutputError, match=r"another model.*full checkpoints are kept"):
        manager.close()
    assert Archive(tmp_path / "run" / "archive").steps == [1, 3, 4]
    assert sorted(path.name for path in (tmp_path / "run" / "full").iterdir()) == ["step-2.pt", "step-4.pt"]
    assert CheckpointManager(tmp_path / "run").resume(2)["step"] == 2


@pytest.mark.usefixtures("forked")
def test_without_a_log_a_failure_is_a_warning_and_does_not_hide_what_ended_the_training(tmp_path):
    def train():
        with CheckpointManager(tmp_path / "run", settings=EXACT) as manager:
            manager.save(1, {"model": {"w": torch.ones(9, 9)}})
            manager.save(2, {"model": {"other": torch.ones(4)}})
            raise ZeroDivisionError

    with pytest.warns(RuntimeWarning, match="another model"), pytest.raises(ZeroDivisionError):
        train()


@pytest.mark.usefixtures("forked")
def test_a_killed_packing_process_is_started_again(tmp_path):
    notes = Notes()
    with CheckpointManager(tmp_path / "run", settings=EXACT, log=notes) as manager:
        state = {"model": {"w": torch.ones(9)}}
        saved_and_seen(manager, 1, state, lambda: manager._packed() == {1})
        os.kill(manager._packer._process._process, signal.SIGKILL)
        manager._packer._process.wait()
        manager.save(2, state)
        manager.save(3, state)
    assert Archive(tmp_path / "run" / "archive").steps == [1, 2, 3]
    assert "started again" in notes.lines[0]


def test_what_an_older_packer_took_away_is_no_failure(tmp_path):
    """The new packer is told of files that the one of the killed run packs and removes while it waits."""
    for step in (1, 2, 3):
        torch.save({"step": step, "model": {"w": torch.ones(5) * step}}, tmp_path / f"step-{step}.pt")
    pack(find_snapshots([tmp_path / "step-1.pt", tmp_path / "step-2.pt"]), tmp_path / "a", EXACT)
    (tmp_path / "step-1.pt").unlink()
    with Packer(tmp_path / "a") as packer:
        worker = background.Worker(packer, 1)
        for step in (1, 2, 3):
            worker.take(tmp_path / f"step-{step}.pt")
        assert worker.finish()
        assert packer.last_step == 3
        worker.take(tmp_path / "step-9.pt")  # gone, and nowhere
        assert not worker.finish()
    assert not (tmp_path / "step-2.pt").exists()
    assert (tmp_path / "step-3.pt").exists()


def test_a_full_disk_holds_a_checkpoint_up_and_does_not_drop_it(tmp_path, monkeypatch, capsys):
    for step in (1, 2):
        torch.save({"step": step, "model": {"w": torch.ones(5) * step}}, tmp_path / f"step-{step}.pt")
    with Packer(tmp_path / "a", EXACT) as packer:
        worker = background.Worker(packer, 0)
        with monkeypatch.context() as patch:
            patch.setattr(files, "FILES", FailingFiles(2))
            worker.take(tmp_path / "step-1.pt")
        assert not worker.finish()
        assert "step-1.pt waits to be packed" in capsys.readouterr().err
        worker.take(tmp_path / "step-2.pt")
        assert worker.finish()
    assert Archive(tmp_path / "a").steps == [1, 2]


def in_another_namespace(monkeypatch):
    """See processes as a container on the same disk does: not at all."""
    monkeypatch.setattr(files, "_alive", lambda _: False)


def test_readers_elsewhere_leave_the_temporary_files_of_a_training_alone(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path / "run", settings=EXACT)
    manager._queue = lambda path: None
    manager.save(1, {"model": {"w": torch.ones(5)}})
    pack(find_snapshots([tmp_path / "run" / "full"]), tmp_path / "run" / "archive", EXACT)
    in_another_namespace(monkeypatch)
    with (
        files.atomic_stream(tmp_path / "run" / "full" / "step-2.pt") as handle,
        files.atomic_folder(tmp_path / "run" / "other") as other,
    ):
        handle.write(b"half")
        assert CheckpointManager(tmp_path / "run").resume()["step"] == 1
        Archive(tmp_path / "run" / "archive").unpack(1, tmp_path / "run" / "mine")
        files.remove_stale(tmp_path / "run")  # and who does clean up asks the lock, not only the number
        files.remove_stale(tmp_path / "run" / "full")
        assert other.is_dir()
    assert (tmp_path / "run" / "full" / "step-2.pt").read_bytes() == b"half"
    assert (tmp_path / "run" / "other").is_dir()


def test_what_is_not_ours_in_the_folder_of_full_states_is_ignored(tmp_path):
    manager = CheckpointManager(tmp_path / "run", settings=EXACT)
    manager._queue = lambda path: None
    manager.save(1, {"model": {"w": torch.ones(5)}})
    (tmp_path / "run" / "full" / "step-best.pt").write_bytes(b"mine")
    assert CheckpointManager(tmp_path / "run").resume()["step"] == 1


@pytest.mark.usefixtures("forked")
def test_what_a_killed_run_left_is_packed_by_the_next(tmp_path):
    manager = CheckpointManager(tmp_path / "run", keep_full=2, settings=EXACT)
    manager._packer = None
    manager._queue = lambda path: None  # as if the process died before it packed anything
    for step in (1, 2, 3):
        CheckpointManager.save(manager, step, {"model": {"w": torch.full((9,), float(step))}})
    with CheckpointManager(tmp_path / "run", keep_full=2, settings=EXACT) as again:
        assert again.resume()["step"] == 3
        again.save(4, {"model": {"w": torch.full((9,), 4.0)}})
    assert Archive(tmp_path / "run" / "archive").steps == [1, 2, 3, 4]


def test_at_least_one_stays_whole(tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        CheckpointManager(tmp_path, keep_full=0)


def test_the_background_process_packs_folders_too(tmp_path):
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        torch.save({"w": torch.ones(5) * step}, folder / "pytorch_model.bin")
        (folder / "trainer_state.json").write_text("{}")
    packer = BackgroundPacker(tmp_path / "a", 1, EXACT)
    for step in (1, 2, 3):
        packer.submit(tmp_path / f"checkpoint-{step}")
    packer.close()
    assert Archive(tmp_path / "a").steps == [1, 2, 3]
    assert not (tmp_path / "checkpoint-2").exists()
    assert (tmp_path / "checkpoint-3").exists()


def test_a_packer_waits_for_the_one_of_a_killed_run(tmp_path):
    for step in (1, 2):
        torch.save({"step": step, "model": {"w": torch.ones(5) * step}}, tmp_path / f"step-{step}.pt")
    with Packer(tmp_path / "a", EXACT) as old:
        new = BackgroundPacker(tmp_path / "a", 0)
        new.submit(tmp_path / "step-2.pt")
        time.sleep(1)
        assert new._process.poll() is None
        old.add(find_snapshots([tmp_path / "step-1.pt"])[0])
    new.close()
    assert Archive(tmp_path / "a").steps == [1, 2]


@pytest.mark.usefixtures("forked")
def test_a_state_packed_while_it_is_asked_for_comes_from_the_archive(tmp_path, monkeypatch):
    with CheckpointManager(tmp_path / "run", keep_full=1, settings=EXACT) as manager:
        for step in (1, 2):
            manager.save(step, {"model": {"w": torch.full((8, 8), float(step))}})
    late = CheckpointManager(tmp_path / "run")
    seen = iter([set(), {1, 2}])  # the archive before and after the packer moved step 1
    monkeypatch.setattr(late, "_packed", lambda: next(seen))
    (tmp_path / "run" / "full" / "step-2.pt").unlink()
    (tmp_path / "run" / "full" / "step-1.pt").write_bytes(b"going")
    assert late.resume()["step"] == 1


def test_packing_a_managers_run_by_hand_reads_its_full_files(tmp_path):
    manager = CheckpointManager(tmp_path / "run")
    manager._queue = lambda path: None
    for step in (1, 2):
        manager.save(step, {"model": {"w": torch.ones(4) * step}})
    pack(find_snapshots([tmp_path / "run" / "full"]), tmp_path / "a", EXACT)
    assert Archive(tmp_path / "a").steps == [1, 2]
