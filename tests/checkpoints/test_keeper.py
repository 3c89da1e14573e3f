from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import checkpoint_runs
from breaking_files import DyingFiles, FailingFiles
from checkpoint_runs import Net, optimizer_of, state_of, train_step
from lessen import files
from lessen.checkpoints import Archive, Packer, PackSettings, background, find_snapshots, pack
from lessen.checkpoints.background import remove
from lessen.checkpoints.keeper import CheckpointKeeper
from lessen.checkpoints.packing_process import BackgroundPacker
from lessen.errors import ArtifactError, ConfigError, OutputError
from lessen.log import Log

EXACT = PackSettings(mode="exact")


class Notes(Log):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


@pytest.mark.usefixtures("forked")
def test_the_newest_stay_whole_and_all_are_packed(tmp_path):
    torch.manual_seed(0)
    net = Net()
    optimizer = optimizer_of(net, "adam")
    states = {}
    with CheckpointKeeper(tmp_path / "run", keep_full=2, settings=EXACT) as keeper:
        assert keeper.resume() is None
        for step in range(1, 6):
            train_step(net, optimizer, step)
            keeper.save(step, state_of(net, optimizer, step))
            states[step] = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert sorted(path.name for path in (tmp_path / "run" / "full").iterdir()) == ["step-4.pt", "step-5.pt"]
    assert Archive(tmp_path / "run" / "archive").steps == [1, 2, 3, 4, 5]
    for step in (1, 3, 5):
        state = CheckpointKeeper(tmp_path / "run").resume(step)
        assert state["step"] == step
        for name, tensor in states[step].items():
            assert torch.equal(state["model"][name], tensor)
    with pytest.raises(ArtifactError, match="no readable step 9"):
        CheckpointKeeper(tmp_path / "run").resume(9)


@pytest.mark.usefixtures("forked")
def test_a_damaged_full_file_gives_way_to_the_archive_and_then_to_older_ones(tmp_path):
    notes = Notes()
    with CheckpointKeeper(tmp_path / "run", settings=EXACT) as keeper:
        for step in (1, 2):
            keeper.save(step, {"model": {"w": torch.full((8, 8), float(step))}})
    full = tmp_path / "run" / "full" / "step-2.pt"
    full.write_bytes(full.read_bytes()[:300])
    state = CheckpointKeeper(tmp_path / "run", log=notes).resume()
    assert state["step"] == 2
    assert "step-2.pt" in notes.lines[0]
    (tmp_path / "run" / "full" / "step-3.pt").write_bytes(b"cut")
    assert CheckpointKeeper(tmp_path / "run", log=notes).resume()["step"] == 2


def saved_and_seen(keeper, step, state, ready):
    """Save, then wait until `ready` says that the packer is done with it."""
    keeper.save(step, state)
    until = time.monotonic() + 60
    while not ready() and time.monotonic() < until:
        time.sleep(0.02)


@pytest.mark.usefixtures("forked")
def test_a_state_that_cannot_be_packed_is_told_at_once_and_the_next_ones_are_packed(tmp_path):
    notes = Notes()
    keeper = CheckpointKeeper(tmp_path / "run", keep_full=1, settings=EXACT, log=notes)
    good = {"model": {"w": torch.ones(9, 9)}}
    keeper.save(1, good)
    keeper.save(2, {"model": {"other": torch.ones(4)}})  # another model: the packer refuses it
    saved_and_seen(keeper, 3, good, lambda: keeper._packed() == {1, 3})
    keeper.save(4, good)
    assert len(notes.lines) == 1
    assert "step-2.pt is not packed" in notes.lines[0]
    assert "another model" in notes.lines[0]
    with pytest.raises(OutputError, match=r"another model.*full checkpoints are kept"):
        keeper.close()
    assert Archive(tmp_path / "run" / "archive").steps == [1, 3, 4]
    assert sorted(path.name for path in (tmp_path / "run" / "full").iterdir()) == ["step-2.pt", "step-4.pt"]
    assert CheckpointKeeper(tmp_path / "run").resume(2)["step"] == 2


@pytest.mark.usefixtures("forked")
def test_without_a_log_a_failure_is_a_warning_and_does_not_hide_what_ended_the_training(tmp_path):
    def train():
        with CheckpointKeeper(tmp_path / "run", settings=EXACT) as keeper:
            keeper.save(1, {"model": {"w": torch.ones(9, 9)}})
            keeper.save(2, {"model": {"other": torch.ones(4)}})
            raise ZeroDivisionError

    with pytest.warns(RuntimeWarning, match="another model"), pytest.raises(ZeroDivisionError):
        train()


@pytest.mark.usefixtures("forked")
def test_a_killed_packing_process_is_started_again(tmp_path):
    notes = Notes()
    with CheckpointKeeper(tmp_path / "run", settings=EXACT, log=notes) as keeper:
        state = {"model": {"w": torch.ones(9)}}
        saved_and_seen(keeper, 1, state, lambda: keeper._packed() == {1})
        os.kill(keeper._packer._process._process, signal.SIGKILL)
        keeper._packer._process.wait()
        keeper.save(2, state)
        keeper.save(3, state)
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
    keeper = CheckpointKeeper(tmp_path / "run", settings=EXACT)
    keeper._queue = lambda path: None
    keeper.save(1, {"model": {"w": torch.ones(5)}})
    pack(find_snapshots([tmp_path / "run" / "full"]), tmp_path / "run" / "archive", EXACT)
    in_another_namespace(monkeypatch)
    with (
        files.atomic_stream(tmp_path / "run" / "full" / "step-2.pt") as handle,
        files.atomic_folder(tmp_path / "run" / "other") as other,
    ):
        handle.write(b"half")
        assert CheckpointKeeper(tmp_path / "run").resume()["step"] == 1
        Archive(tmp_path / "run" / "archive").unpack(1, tmp_path / "run" / "mine")
        files.remove_stale(tmp_path / "run")  # and who does clean up asks the lock, not only the number
        files.remove_stale(tmp_path / "run" / "full")
        assert other.is_dir()
    assert (tmp_path / "run" / "full" / "step-2.pt").read_bytes() == b"half"
    assert (tmp_path / "run" / "other").is_dir()


def test_what_is_not_ours_in_the_folder_of_full_states_is_ignored(tmp_path):
    keeper = CheckpointKeeper(tmp_path / "run", settings=EXACT)
    keeper._queue = lambda path: None
    keeper.save(1, {"model": {"w": torch.ones(5)}})
    (tmp_path / "run" / "full" / "step-best.pt").write_bytes(b"mine")
    assert CheckpointKeeper(tmp_path / "run").resume()["step"] == 1


@pytest.mark.usefixtures("forked")
def test_what_a_killed_run_left_is_packed_by_the_next(tmp_path):
    keeper = CheckpointKeeper(tmp_path / "run", keep_full=2, settings=EXACT)
    keeper._packer = None
    keeper._queue = lambda path: None  # as if the process died before it packed anything
    for step in (1, 2, 3):
        CheckpointKeeper.save(keeper, step, {"model": {"w": torch.full((9,), float(step))}})
    with CheckpointKeeper(tmp_path / "run", keep_full=2, settings=EXACT) as again:
        assert again.resume()["step"] == 3
        again.save(4, {"model": {"w": torch.full((9,), 4.0)}})
    assert Archive(tmp_path / "run" / "archive").steps == [1, 2, 3, 4]


def test_at_least_one_stays_whole(tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        CheckpointKeeper(tmp_path, keep_full=0)


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
    with CheckpointKeeper(tmp_path / "run", keep_full=1, settings=EXACT) as keeper:
        for step in (1, 2):
            keeper.save(step, {"model": {"w": torch.full((8, 8), float(step))}})
    late = CheckpointKeeper(tmp_path / "run")
    seen = iter([set(), {1, 2}])  # the archive before and after the packer moved step 1
    monkeypatch.setattr(late, "_packed", lambda: next(seen))
    (tmp_path / "run" / "full" / "step-2.pt").unlink()
    (tmp_path / "run" / "full" / "step-1.pt").write_bytes(b"going")
    assert late.resume()["step"] == 1


# -- kills ---------------------------------------------------------------------------------------------------------
TRAINING = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from checkpoint_runs import Net, optimizer_of, state_of, train_step
from lessen.checkpoints import PackSettings
from lessen.checkpoints.background import remove
from lessen.checkpoints.keeper import CheckpointKeeper
torch.set_num_threads(1)
torch.manual_seed(0)
net = Net()
optimizer = optimizer_of(net, "adam")
with CheckpointKeeper(sys.argv[1], keep_full=2, settings=PackSettings(mode="exact", key_every=5)) as keeper:
    state = keeper.resume() or state_of(net, optimizer, 0)
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step = state["step"]
    print("ready", step, flush=True)
    while True:
        step += 1
        train_step(net, optimizer, step)
        keeper.save(step, state_of(net, optimizer, step))
        print("saved", step, flush=True)
"""


class Unbroken:
    """The same training without kills: what the weights and moments of every step must be, bit for bit."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = Net()
        self.optimizer = optimizer_of(self.net, "adam")
        self.prints = {0: self._print(state_of(self.net, self.optimizer, 0))}

    @staticmethod
    def _print(state) -> str:
        digest = hashlib.sha256()
        tensors = [*state["model"].values()]
        tensors += [value for moments in state["optimizer"]["state"].values() for value in moments.values()]
        for tensor in tensors:
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def check(self, state) -> None:
        for step in range(len(self.prints), state["step"] + 1):
            train_step(self.net, self.optimizer, step)
            self.prints[step] = self._print(state_of(self.net, self.optimizer, step))
        assert self._print(state) == self.prints[state["step"]], f"step {state['step']} is not what was saved"


def kill_training(folder: Path, choose: random.Random, rounds: int, longest: float) -> None:
    """Kill a real training at random moments, with its packer or without; each round goes on from what is left.

    Every other round goes on from the archive alone. Nothing that was said to be saved may be lost, every state must
    be that of the training that was never killed, and in the end no step is missing from the archive.
    """
    unbroken, last = Unbroken(), 0
    command = [sys.executable, "-c", TRAINING, str(folder), str(Path(checkpoint_runs.__file__).parent)]
    for number in range(rounds):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout.readline().split()[0] == "ready"
        time.sleep(choose.uniform(0, longest))
        if choose.random() < 0.3:
            process.kill()  # the packer is left behind, as the kernel's out-of-memory killer does
        else:
            os.killpg(process.pid, signal.SIGKILL)
        said = [int(line.split()[1]) for line in process.stdout.read().splitlines() if line.startswith("saved ")]
        process.wait()
        last = max([last, *said])
        keeper = CheckpointKeeper(folder)
        state = keeper.resume()
        if state is None:
            assert last == 0
            continue
        assert state["step"] >= last
        unbroken.check(state)
        packed = sorted(keeper._packed())
        if packed and number % 2:
            unbroken.check(keeper._unpacked(Archive(folder / "archive"), packed[-1]))
            shutil.rmtree(folder / "full")
            last = packed[-1]
    finish(folder, unbroken)


def finish(folder: Path, unbroken: Unbroken) -> None:
    """Take one more step that is not killed; then the archive holds every step there was, and all of it is whole."""
    with CheckpointKeeper(folder, settings=PackSettings(mode="exact", key_every=5)) as keeper:
        step = (keeper.resume() or {"step": 0})["step"] + 1
        train_step(unbroken.net, unbroken.optimizer, step)
        keeper.save(step, state_of(unbroken.net, unbroken.optimizer, step))
    archive = Archive(folder / "archive")
    assert archive.steps == list(range(1, step + 1))
    assert archive.verify() == []


def save_two(folder: Path, die_at: int) -> None:
    """Save steps up to 2 and pack each at once, in this process, which ends at the n-th file operation (0: never)."""
    files.FILES = DyingFiles(die_at)
    keeper = CheckpointKeeper(folder, keep_full=1, settings=EXACT)
    done = (keeper.resume() or {"step": 0})["step"]
    with Packer(keeper.archive, EXACT) as packer:

        def queue(path: Path) -> None:
            for file in sorted(keeper.full.glob("step-*.pt")):
                snapshot = find_snapshots([file])[0]
                if not packer.holds(snapshot):
                    packer.add(snapshot)
                if file != path:
                    remove(file)

        keeper._queue = queue
        for step in range(done + 1, 3):
            keeper.save(step, {"model": {"w": torch.full((40, 5), float(step))}})
            with (folder / "said").open("a") as said:
                said.write(f"{step}\n")
        queue(keeper.full / "step-2.pt")
    os._exit(0)


def test_a_death_at_every_single_write_leaves_what_was_saved(tmp_path):
    context = multiprocessing.get_context("fork")
    deaths = 0
    for die_at in range(1, 500):
        folder = tmp_path / f"run{die_at}"
        process = context.Process(target=save_two, args=(folder, die_at))
        process.start()
        process.join()
        said = [int(line) for line in (folder / "said").read_text().split()] if (folder / "said").exists() else []
        state = CheckpointKeeper(folder).resume() or {"step": 0}
        assert state["step"] >= max(said, default=0)
        assert state["step"] == 0 or torch.equal(state["model"]["w"], torch.full((40, 5), float(state["step"])))
        if (folder / "archive" / "index.json").exists():
            assert Archive(folder / "archive").verify() == []
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        deaths += 1
        again = context.Process(target=save_two, args=(folder, 0))
        again.start()
        again.join()
        archive = Archive(folder / "archive")
        assert archive.steps == [1, 2]
        assert archive.verify() == []
        assert not list(folder.rglob(f"{files.TEMPORARY}*"))
    assert deaths > 30


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
@pytest.mark.usefixtures("one_thread")
def test_kills_of_a_real_training_50_rounds(tmp_path, seed):
    kill_training(tmp_path / "run", random.Random(seed), 10, 3.0)


@pytest.mark.usefixtures("one_thread")
def test_kills_of_a_real_training(tmp_path):
    kill_training(tmp_path / "run", random.Random(1), 2, 1.0)


def test_packing_a_keepers_run_by_hand_reads_its_full_files(tmp_path):
    keeper = CheckpointKeeper(tmp_path / "run")
    keeper._queue = lambda path: None
    for step in (1, 2):
        keeper.save(step, {"model": {"w": torch.ones(4) * step}})
    pack(find_snapshots([tmp_path / "run" / "full"]), tmp_path / "a", EXACT)
    assert Archive(tmp_path / "a").steps == [1, 2]
