"""What is no weight under an optimiser: exact where nothing moved it, and series in which parts come and go."""

from __future__ import annotations

import copy
import os
import time
import zipfile
from pathlib import Path

import pytest
import torch

from checkpoint_runs import Net, Notes, optimizer_of, state_of, train_step
from lessen.checkpoints import Archive, Packer, PackSettings, find_snapshots, pack
from lessen.errors import DataError, OutputError

EXACT = PackSettings(mode="exact")


class Trained:
    """A small real training whose states tests dress up with whatever trainers put beside it."""

    def __init__(self, kind=torch.optim.AdamW, seed=0) -> None:
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
        self.optimizer = kind(self.net.parameters(), lr=1e-3)
        self.step = 0

    def go(self, steps=4) -> dict:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.net(torch.randn(32, 96)).square().mean().backward()
            self.optimizer.step()
            self.step += 1
        return {
            "step": self.step,
            "model": copy.deepcopy(self.net.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }


def series(folder: Path, states) -> list[Path]:
    folder.mkdir()
    paths = []
    for number, state in enumerate(states, start=1):
        paths.append(folder / f"step-{number}.pt")
        torch.save(state, paths[-1])
    return paths


def back_of(archive: Path, step: int, out: Path) -> dict:
    return torch.load(next(Archive(archive).unpack(step, out).iterdir()), weights_only=True)


def same(one, other) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("weights_only", [False, True])
def test_what_no_optimiser_moved_comes_back_exactly(tmp_path, weights_only):
    """Buffers and frozen layers with the shapes of trained ones, in every step of the series."""
    trained, states = Trained(), []
    still = {
        "inv_freq": 1 / 500_000 ** (torch.arange(0, 128, 2) / 128),
        "position": torch.randn(64),
        "pixel_mean": torch.rand(3),
        "frozen.weight": torch.randn(64, 64),
        "mask": torch.randn(64, 96),
        "big": torch.randn(200, 100),
    }
    for number in range(6):
        state = trained.go()
        state["model"] |= {**still, "norm.running_mean": torch.randn(64)}
        if weights_only:
            del state["optimizer"]
        states.append({**state, "step": number + 1})
    paths = series(tmp_path / "run", states)
    packed = pack(find_snapshots(paths), tmp_path / "a", PackSettings(weights_only=weights_only))
    assert [one.key for one in packed] == [True, True, False, False, False, False]
    for step, state in enumerate(states, start=1):
        back = back_of(tmp_path / "a", step, tmp_path / f"o{step}")["model"]
        for name in (*still, "norm.running_mean"):
            assert same(back[name], state["model"][name]), (step, name)
        for name in ("0.weight", "2.weight"):
            error = (back[name] - state["model"][name]).norm() / state["model"][name].norm()
            assert (error == 0) == (step == 1), (step, name)
            assert error < 0.03
    assert packed[-1].bytes < packed[0].bytes / 4


def test_weights_that_did_not_move_since_the_first_step_are_exact_until_they_do(tmp_path):
    trained = Trained()
    first = trained.go()
    states = [first, {**first, "step": 2}, trained.go(), trained.go()]
    pack(find_snapshots(series(tmp_path / "run", [{**s, "step": k + 1} for k, s in enumerate(states)])), tmp_path / "a")
    errors = []
    for step, state in enumerate(states, start=1):
        back = back_of(tmp_path / "a", step, tmp_path / f"o{step}")["model"]
        errors.append(float((back["0.weight"] - state["model"]["0.weight"]).norm()))
    assert errors[1] == 0
    assert errors[2] > 0


@pytest.mark.parametrize(
    "kind",
    [
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Adadelta,
        torch.optim.Adamax,
        torch.optim.Adafactor,
        torch.optim.NAdam,
        torch.optim.Rprop,
    ],
)
def test_every_optimiser_of_torch_is_packed_near_and_its_own_state_exactly(tmp_path, kind):
    trained = Trained(kind)
    states = [trained.go() for _ in range(4)]
    packed = pack(find_snapshots(series(tmp_path / "run", states)), tmp_path / "a")
    assert [one.key for one in packed] == [True, False, False, False]
    back, true = back_of(tmp_path / "a", 16, tmp_path / "o"), states[-1]
    assert not same(back["model"]["0.weight"], true["model"]["0.weight"])
    for index, values in true["optimizer"]["state"].items():
        for leaf, value in values.items():
            if leaf not in ("exp_avg", "exp_avg_sq"):
                assert same(back["optimizer"]["state"][index][leaf], value), leaf


def test_full_precision_weights_beside_the_optimiser_are_weights(tmp_path):
    """The layout of DeepSpeed: bf16 weights, and the flat fp32 ones that are trained with the optimiser."""
    torch.manual_seed(0)
    flat = torch.randn(8000)
    for step in (10, 20, 30):
        folder = tmp_path / "run" / f"global_step{step}"
        folder.mkdir(parents=True)
        flat = flat + 1e-3 * torch.randn(8000)
        torch.save(
            {"module": {"w": flat.view(80, 100).bfloat16()}, "global_steps": step},
            folder / "mp_rank_00_model_states.pt",
        )
        moments = {0: {"step": torch.tensor(3.0), "exp_avg": flat * 0.1, "exp_avg_sq": flat**2}}
        torch.save(
            {
                "optimizer_state_dict": {
                    "base_optimizer_state": {"state": moments},
                    "single_partition_of_fp32_groups": [flat],
                }
            },
            folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        )
    packed = pack(find_snapshots([tmp_path / "run"]), tmp_path / "a")
    assert [one.step for one in packed] == [10, 20, 30]
    assert packed[-1].raw_bytes > 6 * packed[-1].bytes


# -- what comes and goes -------------------------------------------------------------------------------------------
def lightning(trained: Trained, epoch: int) -> dict:
    """The layout of a Lightning checkpoint with a monitored ModelCheckpoint (save_top_k=2), by its documentation."""
    state = trained.go()
    name = "ModelCheckpoint{'monitor': 'val', 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1}"
    scores = {f"run/epoch={k}.ckpt": torch.tensor(1.0 / (k + 1)) for k in range(max(0, epoch - 1), epoch + 1)}
    monitor = {
        "monitor": "val",
        "best_model_score": torch.tensor(1.0 / (epoch + 1)),
        "best_model_path": f"run/epoch={epoch}.ckpt",
        "current_score": torch.tensor(1.0 / (epoch + 1)),
        "dirpath": "run",
        "best_k_models": scores,
        "kth_best_model_path": f"run/epoch={max(0, epoch - 1)}.ckpt",
        "last_model_path": "",
    }
    if epoch:
        monitor["kth_value"] = torch.tensor(1.0 / epoch)
    return {
        "epoch": epoch,
        "global_step": trained.step,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state["model"],
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": epoch + 1}}}},
        "callbacks": {name: monitor},
        "optimizer_states": [state["optimizer"]],
        "lr_schedulers": [{"last_epoch": epoch, "_last_lr": [1e-3]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3},
    }


@pytest.mark.parametrize("mode", ["near", "exact"])
def test_a_lightning_run_with_a_monitor_is_one_series(tmp_path, mode):
    trained = Trained()
    states = [lightning(trained, epoch) for epoch in range(5)]
    (tmp_path / "run").mkdir()
    paths = []
    for epoch, state in enumerate(states):
        paths.append(tmp_path / "run" / f"epoch={epoch}-step={state['global_step']}.ckpt")
        torch.save(state, paths[-1])
    packed = pack(find_snapshots([tmp_path / "run"]), tmp_path / "a", PackSettings(mode=mode))
    assert [one.key for one in packed] == [True, False, False, False, False]
    archive = Archive(tmp_path / "a")
    assert archive.verify() == []
    for path, state in zip(paths, states, strict=True):
        out = archive.unpack(state["global_step"], tmp_path / f"o{state['epoch']}") / path.name
        if mode == "exact":
            assert out.read_bytes() == path.read_bytes()
        back = torch.load(out, weights_only=True)
        assert back["callbacks"] == state["callbacks"]
        assert zipfile.ZipFile(out).testzip() is None


@pytest.mark.parametrize("mode", ["near", "exact"])
def test_growing_histories_and_a_later_best_state_are_data(tmp_path, mode):
    trained, states = Trained(), []
    for number in range(8):
        state = trained.go()
        state["losses"] = torch.rand(700 * (number + 1))  # more than a page from the second step on
        state["table"] = torch.rand(number + 1, 3)
        if number >= 4:
            state["best_state"] = copy.deepcopy(states[3]["model"])
            state["weights_at_the_best_epoch"] = copy.deepcopy(
                states[3 if number < 6 else 6]["model"] if number != 6 else state["model"]
            )
        states.append(state)
    packed = pack(find_snapshots(series(tmp_path / "run", states)), tmp_path / "a", PackSettings(mode=mode))
    assert [one.key for one in packed].count(False) >= 4
    archive = Archive(tmp_path / "a")
    assert archive.verify() == []
    for state in states:
        back = back_of(tmp_path / "a", state["step"], tmp_path / f"o{state['step']}")
        for name in ("losses", "table"):
            assert same(back[name], state[name])
            assert same(archive.tensor(state["step"], name), state[name])
        for copied in ("best_state", "weights_at_the_best_epoch"):
            for name, value in state.get(copied, {}).items():
                assert same(back[copied][name], value), (state["step"], copied, name)
        error = (back["model"]["0.weight"] - state["model"]["0.weight"]).norm() / state["model"]["0.weight"].norm()
        assert error == 0 if mode == "exact" else 0 < error < 0.03


@pytest.mark.parametrize("mode", ["near", "exact"])
def test_two_runs_in_one_folder_are_noticed(tmp_path, mode):
    one, other = Trained(seed=0), Trained(seed=1)
    states = [one.go(), one.go(), {**other.go(12), "step": 9}, {**one.go(), "step": 12}, one.go()]
    notes = Notes()
    packed = pack(find_snapshots(series(tmp_path / "run", states)), tmp_path / "a", PackSettings(mode=mode), notes)
    assert [entry.key for entry in packed] == [True, False, True, True, False]
    said = [line for line in notes.lines if "two runs" in line]
    assert len(said) == 2
    assert "step 9 " in said[0]
    back = back_of(tmp_path / "a", 9, tmp_path / "o")["model"]["0.weight"]
    assert (back - states[2]["model"]["0.weight"]).norm() < 0.01 * back.norm()


def test_moments_that_appear_start_a_key_frame(tmp_path):
    torch.manual_seed(0)
    net = Net()
    optimizer = optimizer_of(net, "adam")
    for step in range(3):
        torch.save(state_of(net, optimizer, step), tmp_path / f"step-{step}.pt")
        train_step(net, optimizer, step)
    pack(find_snapshots([tmp_path]), tmp_path / "a", EXACT)
    assert [entry.key for entry in Archive(tmp_path / "a").entries] == [True, True, False]


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(run, tmp_path, monkeypatch):
    path = tmp_path / "step-8.pt"
    path.write_bytes(run[0].read_bytes())
    with Packer(tmp_path / "a", EXACT) as packer:
        snapshot = find_snapshots([path])[0]
        monkeypatch.setattr(packer.log, "progress", lambda *_: os.utime(path, ns=(1, time.time_ns())))
        with pytest.raises(DataError, match="changed while it was being packed"):
            packer.add(snapshot)
    assert Archive(tmp_path / "a").steps == []


def test_an_archive_is_not_made_in_a_folder_of_other_files(run, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        pack(find_snapshots(run), tmp_path)
