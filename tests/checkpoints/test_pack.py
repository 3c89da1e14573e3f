from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import random
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from breaking_files import FailingFiles
from checkpoint_runs import Net, make_run, optimizer_of, state_of, train_step
from lessen import files
from lessen.checkpoints import Archive, Packer, PackSettings, find_snapshots, pack
from lessen.checkpoints.blocks import Form, is_table, row_digests
from lessen.checkpoints.index import read_index, write_index
from lessen.errors import ConfigError, DataError, LessenError, OutputError
from lessen.log import Log

EXACT = PackSettings(mode="exact")


class Notes(Log):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


# -- series --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["exact", "near"])
def test_packing_one_by_one_equals_packing_at_once(run, tmp_path, mode):
    settings = PackSettings(mode=mode)
    pack(find_snapshots(run), tmp_path / "once", settings)
    for path in run:
        pack(find_snapshots([path]), tmp_path / "each", settings)
    once, each = contents(tmp_path / "once"), contents(tmp_path / "each")
    assert once == each


def test_packing_again_adds_nothing(run, tmp_path):
    assert len(pack(find_snapshots(run), tmp_path / "a", EXACT)) == 5
    before = contents(tmp_path / "a")
    assert pack(find_snapshots(run), tmp_path / "a") == []
    assert contents(tmp_path / "a") == before


def test_an_archive_keeps_its_settings(run, tmp_path):
    pack(find_snapshots(run[:1]), tmp_path / "a", PackSettings(key_every=7))
    with pytest.raises(ConfigError, match="key_every = 7"):
        pack(find_snapshots(run), tmp_path / "a", PackSettings(key_every=8))
    pack(find_snapshots(run), tmp_path / "a")
    assert Archive(tmp_path / "a").steps == [8, 16, 24, 32, 40]


def test_steps_must_go_up(run, tmp_path):
    pack(find_snapshots(run[2:3]), tmp_path / "a", EXACT)
    with Packer(tmp_path / "a") as packer, pytest.raises(DataError, match="step 8 does not come after step 24"):
        packer.add(find_snapshots(run[:1])[0])


def test_a_packer_knows_what_it_holds(run, tmp_path):
    with Packer(tmp_path / "a", EXACT) as packer:
        snapshot = find_snapshots(run[:1])[0]
        assert not packer.holds(snapshot)
        packer.add(snapshot)
        assert packer.holds(snapshot)


def test_another_model_is_refused_by_the_tensor_that_differs(run, tmp_path):
    other = make_run(tmp_path / "wide", checkpoints=7, width=25)
    pack(find_snapshots(run), tmp_path / "a", EXACT)
    with pytest.raises(
        DataError, match=r"another model than step 40: tensor 'model/inner.weight'.*\[25, 8\] instead of F32 \[24, 8\]"
    ):
        pack(find_snapshots(other[-2:]), tmp_path / "a")
    assert Archive(tmp_path / "a").steps == [8, 16, 24, 32, 40]


# -- steps that come late, are written again, or were pruned -------------------------------------------------------
def test_a_step_that_was_written_again_is_not_called_there(run, tmp_path):
    folder = Path(shutil.copytree(run[0].parent, tmp_path / "run"))
    pack(find_snapshots([folder]), tmp_path / "a", EXACT)
    before = contents(tmp_path / "a")
    for path in folder.iterdir():  # the same bytes, written later: a copy
        path.write_bytes(path.read_bytes())
    assert pack(find_snapshots([folder]), tmp_path / "a") == []
    state = torch.load(run[2], weights_only=True)
    state["model"]["out.bias"] += 1
    torch.save(state, folder / "step-24.pt")
    with pytest.raises(DataError, match=r"step-24\.pt is not what .* holds as step 24.*--keep-before 24"):
        pack(find_snapshots([folder]), tmp_path / "a")
    assert contents(tmp_path / "a") == before
    Archive(tmp_path / "a").prune([8, 16])  # what the message says
    assert [packed.step for packed in pack(find_snapshots([folder]), tmp_path / "a")] == [24, 32, 40]
    back = Archive(tmp_path / "a").tensor(24, "model/out.bias")
    assert torch.equal(back, state["model"]["out.bias"])


def test_a_step_that_comes_late_is_refused_and_a_pruned_one_is_not_missed(run, tmp_path):
    pack(find_snapshots([run[0], *run[2:]]), tmp_path / "a", PackSettings(mode="exact", key_every=2))
    with pytest.raises(DataError, match=r"step-16\.pt \(step 16\) is not in .* comes before its last step, 40"):
        pack(find_snapshots(run), tmp_path / "a")
    Archive(tmp_path / "a").prune([40])
    assert Archive(tmp_path / "a").index.pruned == [8, 24, 32]
    assert pack(find_snapshots([run[0], *run[2:]]), tmp_path / "a") == []


def test_an_archive_of_format_1_may_have_been_pruned_and_says_what_it_leaves_out(run, tmp_path):
    pack(find_snapshots(run[1:]), tmp_path / "a", EXACT)
    index = read_index(tmp_path / "a")
    write_index(tmp_path / "a", replace(index, pruned=None))
    notes = Notes()
    assert pack(find_snapshots(run), tmp_path / "a", log=notes) == []
    assert any("step-8.pt is left out" in line for line in notes.lines)


def test_moments_that_vanish_are_refused(run, tmp_path):
    pack(find_snapshots(run[:2]), tmp_path / "a", EXACT)
    state = torch.load(run[2], weights_only=True)
    del state["optimizer"]
    torch.save(state, tmp_path / "step-24.pt")
    with pytest.raises(DataError, match="step 24 has no optimiser moments but step 16 has"):
        pack(find_snapshots([tmp_path / "step-24.pt"]), tmp_path / "a")


def test_near_without_moments_says_what_to_do(tmp_path):
    weight = torch.randn(99, 70)
    save_file({"w": weight}, tmp_path / "m-1.safetensors")
    with pytest.raises(DataError, match="no optimiser moments.*exact"):
        pack(find_snapshots([tmp_path]), tmp_path / "a")
    for step in (2, 3):
        weight = weight + 1e-3 * torch.randn(99, 70)
        save_file({"w": weight}, tmp_path / f"m-{step}.safetensors")
    packed = pack(find_snapshots([tmp_path]), tmp_path / "b", PackSettings(weights_only=True))
    assert packed[2].raw_bytes > 4 * packed[2].bytes


def test_an_optimiser_that_is_not_known_says_so(tmp_path):
    torch.save(
        {"step": 1, "model": {"w": torch.ones(9, 9)}, "optimizer": {"state": {0: {"odd": torch.ones(9)}}}},
        tmp_path / "s.pt",
    )
    with pytest.raises(DataError, match="an optimiser that is not known here"):
        pack(find_snapshots([tmp_path / "s.pt"]), tmp_path / "a")


# -- what no optimiser moved ---------------------------------------------------------------------------------------
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


# -- tables --------------------------------------------------------------------------------------------------------
def sparse_run(folder: Path, checkpoints: int = 4) -> list[Path]:
    """A table of 20,000 rows of which 2 % move between checkpoints."""
    folder.mkdir()
    torch.manual_seed(0)
    table = torch.nn.Embedding(20_000, 8, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.05)
    paths = []
    for step in range(1, 10 * checkpoints + 1):
        optimizer.zero_grad()
        table(torch.randint(0, 20_000, (40,))).square().sum().backward()
        optimizer.step()
        if step % 10 == 0:
            paths.append(folder / f"step-{step}.pt")
            torch.save({"step": step, "model": table.state_dict(), "optimizer": optimizer.state_dict()}, paths[-1])
    return paths


@pytest.mark.parametrize("mode", ["exact", "near"])
def test_tables_cost_their_touched_rows(tmp_path, mode, monkeypatch):
    paths = sparse_run(tmp_path / "run")
    settings = PackSettings(mode=mode)
    rows = pack(find_snapshots(paths), tmp_path / "rows", settings)
    raw = 20_000 * 8 * 4 * 3
    assert rows[-1].bytes < raw * 0.02 * (1.6 if mode == "exact" else 0.4) + 5000
    monkeypatch.setattr("lessen.checkpoints.building.blocks.is_table", lambda _: False)
    whole = pack(find_snapshots(paths), tmp_path / "whole", settings)
    # exact deltas of unmoved numbers are nearly free already; near codes moments anew at every step unless by rows
    assert whole[-1].bytes > (1.15 if mode == "exact" else 2) * rows[-1].bytes


@pytest.mark.parametrize("again", [True, False])
def test_untouched_rows_do_not_change(tmp_path, again):
    paths = sparse_run(tmp_path / "run")
    if again:
        for path in paths:
            pack(find_snapshots([path]), tmp_path / "a", PackSettings())
    else:
        pack(find_snapshots(paths), tmp_path / "a", PackSettings())
    archive = Archive(tmp_path / "a")
    true = [torch.load(path, weights_only=True)["model"]["weight"] for path in paths]
    back = [archive.tensor(step, "model/weight") for step in archive.steps]
    still = (true[3] == true[2]).all(1)
    assert 0.95 < still.float().mean() < 0.99
    assert torch.equal(back[3][still], back[2][still])
    assert torch.allclose(back[3], true[3], atol=0.08)


def test_row_digests_tell_rows_apart():
    import numpy as np

    words = np.random.default_rng(0).integers(0, 2**32, 600, dtype=np.uint32)
    form = Form({"weight": "F32", "first": "F32"}, 60, 10)
    before = row_digests({"weight": words, "first": words}, form)
    changed = words.copy()
    changed[123] ^= 1
    after = row_digests({"weight": words, "first": changed}, form)
    assert np.flatnonzero(before != after).tolist() == [12]
    assert is_table((5000, 16))
    assert not is_table((256, 256))
    assert not is_table((5000,))


# -- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "near"])
def test_a_full_disk_at_any_write_leaves_old_or_new(tmp_path, mode, monkeypatch):
    paths = make_run(tmp_path / "run", checkpoints=2)
    settings = PackSettings(mode=mode)
    pack(find_snapshots(paths), tmp_path / "whole", settings)
    finished = contents(tmp_path / "whole")
    fail_at, faults = 1, 0
    while True:
        folder = tmp_path / f"a{fail_at}"
        pack(find_snapshots(paths[:1]), folder, settings)
        layer = FailingFiles(fail_at)
        with monkeypatch.context() as patch:
            patch.setattr(files, "FILES", layer)
            try:
                pack(find_snapshots(paths), folder)
                fault = False
            except OutputError as error:
                fault = True
                assert "No space left" in str(error)
        archive = Archive(folder)
        assert archive.steps in ([8], [8, 16])
        assert archive.verify() == []
        assert not list(folder.glob(f"{files.TEMPORARY}*"))
        pack(find_snapshots(paths), folder)  # and once there is room, packing goes on
        assert contents(folder) == finished
        if not fault:
            break
        faults += 1
        fail_at += max(1, fail_at // 3)
    assert faults > 6


def test_a_full_disk_for_the_reference_is_an_output_error(run, tmp_path, monkeypatch):
    from lessen.checkpoints import reference

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    pack(find_snapshots(run[:1]), tmp_path / "a", EXACT)
    monkeypatch.setattr(reference.os, "pwrite", no_room)
    with pytest.raises(OutputError, match="No space left"):
        pack(find_snapshots(run), tmp_path / "a")
    monkeypatch.undo()
    assert Archive(tmp_path / "a").steps == [8]


def test_two_writers_at_once(run, tmp_path):
    with Packer(tmp_path / "a", EXACT) as packer:
        packer.add(find_snapshots(run[:1])[0])
        with pytest.raises(OutputError, match=f"written by process {os.getpid()}"):
            pack(find_snapshots(run), tmp_path / "a")
        with pytest.raises(OutputError, match="being written"):
            Archive(tmp_path / "a").prune([8])
        assert Archive(tmp_path / "a").steps == [8]  # reading goes on beside a writer
    assert len(pack(find_snapshots(run), tmp_path / "a")) == 4


def _pack_all(paths, folder):
    pack(find_snapshots(paths), folder, PackSettings(mode="exact", key_every=2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_kills_at_random_times_never_lose_what_was_packed_50_rounds(run, tmp_path, seed):
    kill_rounds(run, tmp_path, 10, seed)


def test_kills_at_random_times_never_lose_what_was_packed(run, tmp_path):
    kill_rounds(run, tmp_path, 6, 0)


def kill_rounds(run, tmp_path, rounds, seed):
    """Kill a packing process at a random moment; what it had listed must be whole, and the next one goes on."""
    began = time.monotonic()
    _pack_all(run, tmp_path / "timed")
    span = time.monotonic() - began
    finished = contents(tmp_path / "timed")
    choose = random.Random(seed)
    context = multiprocessing.get_context("fork")
    killed = 0
    folder = tmp_path / "a0"
    for number in range(9 * rounds):
        if killed == rounds:
            break
        process = context.Process(target=_pack_all, args=(run, folder))
        process.start()
        time.sleep(choose.uniform(0, 1.5 * span))
        alive = process.is_alive()
        process.kill()
        process.join()
        killed += alive
        span *= 1.1 if alive else 0.8  # the first run was timed cold, and on a busy machine
        if not (folder / "index.json").exists():
            continue
        archive = Archive(folder)
        assert archive.verify() == []
        for step, path in zip(archive.steps, run, strict=False):
            out = archive.unpack(step, tmp_path / f"o{number}-{step}")
            assert (out / path.name).read_bytes() == path.read_bytes()
        if archive.steps == [8, 16, 24, 32, 40]:
            _pack_all(run, folder)  # cleans up what the kill left
            assert contents(folder) == finished
            folder = tmp_path / f"a{number + 1}"
    assert killed == rounds


def test_errors_are_named_for_every_bad_source(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_snapshots([tmp_path / "nope"])
    with pytest.raises(DataError, match="no checkpoint in"):
        find_snapshots([tmp_path])
    (tmp_path / "step-1.pt").write_bytes(b"garbage")
    with pytest.raises(LessenError, match=r"step-1\.pt"):
        pack(find_snapshots([tmp_path / "step-1.pt"]), tmp_path / "a")


MEASURED = """
import sys
from pathlib import Path
from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
def peak():
    # not ru_maxrss: a child starts with that of the process that forked it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
pack(find_snapshots([Path(sys.argv[1])]), sys.argv[2], PackSettings(mode="exact"))
archive = Archive(sys.argv[2])
archive.unpack(2, sys.argv[3])
print((peak() - before) / 1000)
"""


@pytest.mark.slow
def test_memory_stays_far_below_the_size_of_a_checkpoint(tmp_path):
    import subprocess
    import sys

    (tmp_path / "run").mkdir()
    weight = torch.randn(70_000, 1024)
    for step in (1, 2):
        save_file({"w": weight}, tmp_path / "run" / f"w-{step}.safetensors")
        weight += 1e-4
    size = 4 * weight.numel() / 1e6
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "run"), str(tmp_path / "a"), str(tmp_path / "o")]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert size > 280
    assert 5 < peak < 0.7 * size
