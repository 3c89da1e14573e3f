from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoint_runs import Notes
from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
from lessen.errors import ArtifactError, DataError


def trainer_folder(folder: Path, step: int, shards: int = 1) -> Path:
    """A folder as the Hugging Face Trainer writes it; training_args.bin holds an object and is never opened."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(step)
    first = torch.Generator().manual_seed(0)
    weights = {
        f"layers.{k}.w": torch.randn(30, 20, generator=first) + 0.01 * torch.randn(30, 20, generator=generator)
        for k in range(4)
    }
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        save_file(dict(list(weights.items())[shard::shards]), folder / name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    state = {
        k: {"exp_avg": torch.randn(30, 20, generator=generator), "exp_avg_sq": torch.rand(30, 20, generator=generator)}
        for k in range(4)
    }
    torch.save({"state": state, "param_groups": [{"params": [0, 1, 2, 3]}]}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": list(range(step))}))
    torch.save({"object": Path("x")}, folder / "training_args.bin")
    torch.save({"python": (3, (1, 2), None)}, folder / "rng_state.pth")
    return folder


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("mode", ["exact", "near"])
def test_trainer_folders_with_shards(tmp_path, shards, mode):
    for step in (100, 200, 1000):
        trainer_folder(tmp_path / "run" / f"checkpoint-{step}", step, shards)
    (tmp_path / "run" / "runs").mkdir()
    snapshots = find_snapshots([tmp_path / "run"])
    assert [snapshot.step for snapshot in snapshots] == [100, 200, 1000]
    pack(snapshots, tmp_path / "a", PackSettings(mode=mode))
    archive = Archive(tmp_path / "a")
    assert [entry.key for entry in archive.entries] == [True, False, False]
    out = archive.unpack(1000, tmp_path / "o")
    source = tmp_path / "run" / "checkpoint-1000"
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        if mode == "exact" or not name.endswith(("safetensors", "optimizer.pt")):
            assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert torch.load(out / "optimizer.pt", weights_only=True)["param_groups"] == [{"params": [0, 1, 2, 3]}]


def test_one_trainer_folder_by_name(tmp_path):
    folder = trainer_folder(tmp_path / "checkpoint-7", 7)
    assert [snapshot.step for snapshot in find_snapshots([folder])] == [7]


def test_lightning_checkpoints_tell_their_step(tmp_path):
    for epoch, step in ((0, 50), (1, 100)):
        weight = torch.randn(40, 30)
        torch.save(
            {
                "epoch": epoch,
                "global_step": step,
                "pytorch-lightning_version": "2.5.0",
                "state_dict": {"net.w": weight},
                "optimizer_states": [
                    {"state": {0: {"exp_avg": weight * 0.1, "exp_avg_sq": weight**2}}, "param_groups": []}
                ],
                "lr_schedulers": [],
                "loops": {},
                "callbacks": {},
                "hyper_parameters": {"lr": 0.1},
            },
            tmp_path / f"epoch={epoch}.ckpt",
        )
    torch.save({"global_step": 100}, tmp_path / "last.ckpt")
    snapshots = find_snapshots([tmp_path])
    assert [snapshot.step for snapshot in snapshots] == [50, 100]
    pack(snapshots, tmp_path / "a")
    back = torch.load(Archive(tmp_path / "a").unpack(100, tmp_path / "o") / "epoch=1.ckpt", weights_only=True)
    assert back["hyper_parameters"] == {"lr": 0.1}
    assert back["optimizer_states"][0]["state"][0]["exp_avg_sq"].min() > 0


@pytest.mark.parametrize(
    ("name", "step"),
    [("step-500.pt", 500), ("ckpt_0012.bin", 12), ("model.step=3.loss=0.25.pth", 3), ("e2_i40.pt", 40)],
)
def test_the_step_is_in_the_name_when_the_file_does_not_say(tmp_path, name, step):
    torch.save({"w": torch.ones(2)}, tmp_path / name)
    assert find_snapshots([tmp_path / name])[0].step == step


def test_the_step_of_the_file_beats_the_name(tmp_path):
    torch.save({"w": torch.ones(2), "step": 9}, tmp_path / "ckpt-500.pt")
    assert find_snapshots([tmp_path / "ckpt-500.pt"])[0].step == 9


def test_what_cannot_be_ordered_is_refused(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="tells no step"):
        find_snapshots([tmp_path / "model.pt"])
    torch.save({"w": torch.ones(2), "step": 9}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(2), "step": 9}, tmp_path / "b.pt")
    with pytest.raises(DataError, match="both are step 9"):
        find_snapshots([tmp_path / "a.pt", tmp_path / "b.pt"])


def test_an_optimiser_file_that_would_run_code_is_refused_and_nothing_is_packed(tmp_path):
    folder = trainer_folder(tmp_path / "run" / "checkpoint-5", 5)
    torch.save({"state": ast.Load()}, folder / "optimizer.pt")
    with pytest.raises(ArtifactError, match=r"optimizer\.pt is refused.*ast\.Load"):
        pack(find_snapshots([tmp_path / "run"]), tmp_path / "a")
    assert Archive(tmp_path / "a").steps == []


# -- links ---------------------------------------------------------------------------------------------------------
def test_links_inside_the_run_are_followed(tmp_path):
    folder = trainer_folder(tmp_path / "run" / "checkpoint-5", 5)
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "run" / "shared.bytes")
    weights.symlink_to("../shared.bytes")
    (folder / "inner").mkdir()
    (folder / "again").symlink_to("inner")
    (folder / "inner" / "note.txt").write_text("x")
    for named in (tmp_path / "run", folder):
        pack(find_snapshots([named]), tmp_path / f"of-{named.name}", PackSettings(mode="exact"))
        out = Archive(tmp_path / f"of-{named.name}").unpack(5, tmp_path / f"o-{named.name}")
        assert (out / "model.safetensors").read_bytes() == (tmp_path / "run" / "shared.bytes").read_bytes()
        assert not (out / "model.safetensors").is_symlink()
        assert (out / "again" / "note.txt").read_text() == "x"


def test_links_that_lead_elsewhere_are_refused_by_name(tmp_path):
    folder = trainer_folder(tmp_path / "run" / "checkpoint-5", 5)
    link = folder / "tokenizer.json"
    (tmp_path / "far.json").write_text("{}")
    for target, reason in (("../../far.json", "leads out of the run"), ("gone.json", "leads nowhere")):
        link.symlink_to(target)
        with pytest.raises(DataError, match=f"tokenizer.json is a link that {reason}"):
            find_snapshots([tmp_path / "run"])
        link.unlink()
    link.symlink_to(".")
    with pytest.raises(DataError, match="a folder that it lies in"):
        find_snapshots([tmp_path / "run"])
    link.unlink()
    torch.save({"w": torch.ones(2)}, tmp_path / "far-9.pt")
    (tmp_path / "run" / "far-9.pt").symlink_to("../far-9.pt")
    with pytest.raises(DataError, match=r"far-9\.pt is a link that leads out"):
        find_snapshots([tmp_path / "run"])
    assert find_snapshots([tmp_path / "run" / "far-9.pt"])[0].step == 9  # named: the owner says so


def test_a_link_to_the_latest_step_is_not_a_step_of_its_own(tmp_path):
    for step in (5, 6):
        trainer_folder(tmp_path / "run" / f"checkpoint-{step}", step)
        torch.save({"w": torch.ones(2)}, tmp_path / "run" / f"w-{step + 2}.pt")
    (tmp_path / "run" / "checkpoint-9").symlink_to("checkpoint-6")
    (tmp_path / "run" / "w-9.pt").symlink_to("w-8.pt")
    (tmp_path / "run" / "last.pt").symlink_to("/nowhere/at-all.pt")
    assert [snapshot.step for snapshot in find_snapshots([tmp_path / "run"])] == [5, 6, 7, 8]


# -- what a run holds beside its steps -----------------------------------------------------------------------------
def test_a_run_of_files_called_model_is_a_run_whatever_its_folder_is_called(tmp_path):
    run = tmp_path / "run7"
    run.mkdir()
    for step in (10, 20, 40):
        torch.save({"w": torch.ones(2)}, run / f"model-{step}.pt")
    assert [snapshot.step for snapshot in find_snapshots([run])] == [10, 20, 40]
    with pytest.raises(DataError, match="there are some in .*run7: name that folder"):
        find_snapshots([tmp_path])
    run.rename(tmp_path / "run-7")
    with pytest.raises(DataError, match="run-7 holds several steps: it is a run of its own"):
        find_snapshots([tmp_path])


@pytest.mark.parametrize(
    "names",
    [
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        [
            "mp_rank_00_model_states.pt",
            "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        ],
        ["model.safetensors", "model_1.safetensors", "optimizer.bin", "optimizer_1.bin"],
        ["pytorch_model_fsdp_0.bin", "pytorch_model_fsdp_1.bin", "optimizer.bin"],
        ["consolidated.00.pth", "consolidated.01.pth"],
    ],
)
def test_parts_of_one_step_are_one_checkpoint(tmp_path, names):
    folder = tmp_path / "run" / "global_step30"
    folder.mkdir(parents=True)
    for name in names:
        save = (lambda tree, path: save_file(tree, path)) if name.endswith("safetensors") else torch.save
        save({"w": torch.ones(2)}, folder / name)
    for path in (folder, tmp_path / "run"):
        (snapshot,) = find_snapshots([path])
        assert snapshot.step == 30
        assert sorted(name for _, name in snapshot.files) == sorted(names)


def test_what_stands_beside_the_steps_is_left_out_and_said(tmp_path):
    for step in (10, 20):
        torch.save({"iter_num": step, "model": {"w": torch.ones(2)}}, tmp_path / f"ckpt_{step}.pth.tar")
    torch.save({"iter_num": 20, "model": {"w": torch.ones(2)}}, tmp_path / "best-20.pt")
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "weights.pt")
    torch.save({"step": 7, "scores": [1.0]}, tmp_path / "history-7.pt")
    (tmp_path / "lm-3.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5")
    (tmp_path / "tb_1").mkdir()
    (tmp_path / "tb_1" / "events.out.tfevents.17").write_bytes(b"x")
    notes = Notes()
    assert [snapshot.step for snapshot in find_snapshots([tmp_path], notes)] == [10, 20]
    for name in ("best-20.pt", "weights.pt", "history-7.pt", "lm-3.bin"):
        assert sum(name in line for line in notes.lines) == 1, name
    assert [snapshot.step for snapshot in find_snapshots([tmp_path / "best-20.pt"])] == [20]


def test_a_run_of_best_files_alone_is_a_run(tmp_path):
    for epoch in (1, 2):
        torch.save({"epoch": epoch, "w": torch.ones(2)}, tmp_path / f"best-epoch={epoch}.pt")
    assert [snapshot.step for snapshot in find_snapshots([tmp_path])] == [1, 2]


def test_a_damaged_step_is_not_left_out(tmp_path):
    for step in (1, 2):
        torch.save({"w": torch.ones(2)}, tmp_path / f"s-{step}.pt")
    (tmp_path / "s-2.pt").write_bytes((tmp_path / "s-2.pt").read_bytes()[:400])
    with pytest.raises(ArtifactError, match=r"s-2\.pt"):
        find_snapshots([tmp_path])


def test_a_folder_above_the_checkpoints_names_the_folder_that_has_them(tmp_path):
    inner = tmp_path / "lightning_logs" / "version" / "checkpoints"
    inner.mkdir(parents=True)
    torch.save({"global_step": 3, "w": torch.ones(2)}, inner / "epoch=0-step=3.ckpt")
    with pytest.raises(DataError, match=r"there are some in .*checkpoints: name that folder"):
        find_snapshots([tmp_path])


def test_names_that_cannot_be_unpacked_everywhere_are_refused_before_packing(tmp_path):
    folder = trainer_folder(tmp_path / "run" / "checkpoint-5", 5)
    (folder / "a\\b.txt").write_text("x")
    with pytest.raises(DataError, match="rename it"):
        pack(find_snapshots([tmp_path / "run"]), tmp_path / "a", PackSettings(mode="exact"))
    assert Archive(tmp_path / "a").steps == []


# -- steps ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "state", "step"),
    [
        ("model_epoch_3_loss_0.61.pt", {"epoch": 3, "loss": 0.61}, 3),
        ("model-epoch=01-val_loss=0.65.ckpt", {"epoch": 1, "global_step": 200}, 200),
        ("a.pt", {"step": torch.tensor(40)}, 40),
        ("a.pt", {"step": torch.tensor([41.0])}, 41),
        ("a.pt", {"step": np.int64(42)}, 42),
        ("a.pt", {"trainer_state": {"global_step": 43}}, 43),
        ("a.pt", {"iter_num": 44, "config": {}}, 44),
        ("step-500.pt", {"epoch": 2}, 500),
        ("500-steps.pt", {"epoch": 2}, 500),
        ("run_10k.pt", {}, 10_000),
        ("x-12.pt", {"step": True, "epoch": None}, 12),
        ("x-12.pt", {"step": -3}, 12),
        ("x-13-acc=1.pt", {}, 13),
        ("e2_i40-1.5e-05.pt", {}, 40),
    ],
)
def test_the_step_is_read_from_inside_then_from_the_name_and_never_from_a_loss(tmp_path, name, state, step):
    torch.save({"w": torch.ones(2), **state}, tmp_path / name)
    assert find_snapshots([tmp_path / name])[0].step == step


def test_a_model_size_is_no_step(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "resnet50.pt")
    with pytest.raises(DataError, match="tells no step"):
        find_snapshots([tmp_path / "resnet50.pt"])


def test_several_steps_of_one_epoch_take_their_steps_from_their_names(tmp_path):
    for number in (100, 200):
        torch.save({"w": torch.ones(2), "epoch": 0}, tmp_path / f"ckpt-{number}.pt")
    assert [snapshot.step for snapshot in find_snapshots([tmp_path])] == [100, 200]


def test_safetensors_tell_their_step_in_the_metadata(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "a-7.safetensors", metadata={"step": "30"})
    assert find_snapshots([tmp_path / "a-7.safetensors"])[0].step == 30


def test_a_folder_tells_the_step_of_its_trainer_or_of_the_files_inside(tmp_path):
    folder = trainer_folder(tmp_path / "final-2", 700)
    assert find_snapshots([folder])[0].step == 700
    (folder / "trainer_state.json").unlink()
    torch.save({"global_steps": 300}, folder / "mp_rank_00_model_states.pt")
    assert find_snapshots([folder])[0].step == 300
