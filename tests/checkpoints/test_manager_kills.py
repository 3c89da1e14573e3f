"""Trainings that are killed at random times, and a death at every single write: what was saved is there."""

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
from breaking_files import DyingFiles
from checkpoint_runs import Net, optimizer_of, state_of, train_step
from lessen import files
from lessen.checkpoints import Archive, Packer, PackSettings, find_snapshots
from lessen.checkpoints.background import remove
from lessen.checkpoints.manager import CheckpointManager

EXACT = PackSettings(mode="exact")


TRAINING = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from checkpoint_runs import Net, optimizer_of, state_of, train_step
from lessen.checkpoints import PackSettings
from lessen.checkpoints.background import remove
from lessen.checkpoints.manager import CheckpointManager
torch.set_num_threads(1)
torch.manual_seed(0)
net = Net()
optimizer = optimizer_of(net, "adam")
with CheckpointManager(sys.argv[1], keep_full=2, settings=PackSettings(mode="exact", key_every=5)) as manager:
    state = manager.resume() or state_of(net, optimizer, 0)
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step = state["step"]
    print("ready", step, flush=True)
    while True:
        step += 1
        train_step(net, optimizer, step)
        manager.save(step, state_of(net, optimizer, step))
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
        manager = CheckpointManager(folder)
        state = manager.resume()
        if state is None:
            assert last == 0
            continue
        assert state["step"] >= last
        unbroken.check(state)
        packed = sorted(manager._packed())
        if packed and number % 2:
            unbroken.check(manager._unpacked(Archive(folder / "archive"), packed[-1]))
            shutil.rmtree(folder / "full")
            last = packed[-1]
    finish(folder, unbroken)


def finish(folder: Path, unbroken: Unbroken) -> None:
    """Take one more step that is not killed; then the archive holds every step there was, and all of it is whole."""
    with CheckpointManager(folder, settings=PackSettings(mode="exact", key_every=5)) as manager:
        step = (manager.resume() or {"step": 0})["step"] + 1
        train_step(unbroken.net, unbroken.optimizer, step)
        manager.save(step, state_of(unbroken.net, unbroken.optimizer, step))
    archive = Archive(folder / "archive")
    assert archive.steps == list(range(1, step + 1))
    assert archive.verify() == []


def save_two(folder: Path, die_at: int) -> None:
    """Save steps up to 2 and pack each at once, in this process, which ends at the n-th file operation (0: never)."""
    files.FILES = DyingFiles(die_at)
    manager = CheckpointManager(folder, keep_full=1, settings=EXACT)
    done = (manager.resume() or {"step": 0})["step"]
    with Packer(manager.archive, EXACT) as packer:

        def queue(path: Path) -> None:
            for file in sorted(manager.full.glob("step-*.pt")):
                snapshot = find_snapshots([file])[0]
                if not packer.holds(snapshot):
                    packer.add(snapshot)
                if file != path:
                    remove(file)

        manager._queue = queue
        for step in range(done + 1, 3):
            manager.save(step, {"model": {"w": torch.full((40, 5), float(step))}})
            with (folder / "said").open("a") as said:
                said.write(f"{step}\n")
        queue(manager.full / "step-2.pt")
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
        state = CheckpointManager(folder).resume() or {"step": 0}
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
