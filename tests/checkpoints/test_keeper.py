from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
from lessen.checkpoints.keeper import BackgroundPacker, CheckpointKeeper
from lessen.errors import ArtifactError, ConfigError, OutputError
from lessen.log import Log

from .runs import Net, optimizer_of, state_of, train_step

EXACT = PackSettings(mode="exact")


class Notes(Log):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


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


def test_a_failed_packer_is_told_and_costs_no_state(tmp_path):
    notes = Notes()
    keeper = CheckpointKeeper(tmp_path / "run", keep_full=1, settings=EXACT, log=notes)
    keeper.save(1, {"model": {"w": torch.ones(3)}})
    keeper.save(2, {"model": {"other": torch.ones(4)}})  # another model: the packer refuses it
    with pytest.raises(OutputError, match=r"another model.*full checkpoints are kept"):
        keeper.close()
    assert (tmp_path / "run" / "full" / "step-2.pt").exists()
    assert CheckpointKeeper(tmp_path / "run").resume()["step"] == 2


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


TRAINING = """
import sys, torch
from lessen.checkpoints import PackSettings
from lessen.checkpoints.keeper import CheckpointKeeper
torch.set_num_threads(1)
with CheckpointKeeper(sys.argv[1], keep_full=2, settings=PackSettings(mode="exact", key_every=5)) as keeper:
    state = keeper.resume() or {"step": 0, "model": {"w": torch.zeros(300, 40)}}
    step, w = state["step"], state["model"]["w"]
    print("ready", step, flush=True)
    while True:
        step += 1
        w = w + torch.full_like(w, 0.25)
        keeper.save(step, {"model": {"w": w}})
        print("saved", step, flush=True)
"""


def kill_training(folder: Path, choose: random.Random, rounds: int, longest: float) -> None:
    """Kill training and packer at a random moment; what was said to be saved must be readable, and right."""
    last = 0
    for _ in range(rounds):
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout.readline().split()[0] == "ready"
        time.sleep(choose.uniform(0, longest))
        os.killpg(process.pid, 9)
        said = [int(line.split()[1]) for line in process.stdout.read().splitlines() if line.startswith("saved ")]
        process.wait()
        last = max([last, *said])
        state = CheckpointKeeper(folder).resume()
        if state is None:
            assert last == 0
            continue
        assert state["step"] >= last
        assert torch.equal(state["model"]["w"], torch.full((300, 40), 0.25 * state["step"]))
        if (folder / "archive" / "index.json").exists():
            archive = Archive(folder / "archive")
            for step in archive.steps[-3:]:
                assert torch.equal(archive.tensor(step, "model/w"), torch.full((300, 40), 0.25 * step))
    with CheckpointKeeper(
        folder, settings=PackSettings(mode="exact", key_every=5)
    ) as keeper:  # a run that is not killed
        step = (keeper.resume() or {"step": 0})["step"] + 1
        keeper.save(step, {"model": {"w": torch.full((300, 40), 0.25 * step)}})
    archive = Archive(folder / "archive")
    assert archive.verify() == []
    assert archive.steps == list(range(1, archive.steps[-1] + 1))  # no step is missing


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_kills_of_a_whole_training_run_50_rounds(tmp_path, seed):
    kill_training(tmp_path / "run", random.Random(seed), 10, 6.0)


def test_kills_of_a_whole_training_run(tmp_path):
    kill_training(tmp_path / "run", random.Random(1), 1, 3.0)


def test_packing_a_keepers_run_by_hand_reads_its_full_files(tmp_path):
    keeper = CheckpointKeeper(tmp_path / "run")
    keeper._queue = lambda path: None
    for step in (1, 2):
        keeper.save(step, {"model": {"w": torch.ones(4) * step}})
    pack(find_snapshots([tmp_path / "run" / "full"]), tmp_path / "a", EXACT)
    assert Archive(tmp_path / "a").steps == [1, 2]
