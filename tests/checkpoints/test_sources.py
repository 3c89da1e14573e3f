from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
from lessen.errors import ArtifactError, DataError


def trainer_folder(folder: Path, step: int, shards: int = 1) -> Path:
    """A folder as the Hugging Face Trainer writes it; training_args.bin holds an object and is never opened."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(step)
    weights = {f"layers.{k}.w": torch.randn(30, 20, generator=generator) for k in range(4)}
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
                "epoch": epoch, "global_step": step, "pytorch-lightning_version": "2.5.0", "state_dict": {"net.w": weight},
                "optimizer_states": [{"state": {0: {"exp_avg": weight * 0.1, "exp_avg_sq": weight**2}}, "param_groups": []}],
                "lr_schedulers": [], "loops": {}, "callbacks": {}, "hyper_parameters": {"lr": 0.1},
            },
            tmp_path / f"epoch={epoch}.ckpt",
        )  # fmt: skip
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
    torch.save({"state": Path("x")}, folder / "optimizer.pt")
    with pytest.raises(ArtifactError, match=r"optimizer\.pt is refused.*PosixPath"):
        pack(find_snapshots([tmp_path / "run"]), tmp_path / "a")
    assert Archive(tmp_path / "a").steps == []


def test_links_are_not_followed(tmp_path):
    folder = trainer_folder(tmp_path / "run" / "checkpoint-5", 5)
    (folder / "link.bin").symlink_to(folder / "optimizer.pt")
    assert "link.bin" not in [name for _, name in find_snapshots([tmp_path / "run"])[0].files]
