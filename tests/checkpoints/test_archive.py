from __future__ import annotations

import json
import random
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_runs import make_run
from lessen.checkpoints import Archive, NearSettings, PackSettings, find_snapshots, pack
from lessen.checkpoints.states import load_state
from lessen.errors import ArtifactError, InputError, OutputError

EXACT, NEAR = PackSettings(mode="exact"), PackSettings()


def leaves(tree, name=""):
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{name}/{key}")
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            yield from leaves(value, f"{name}/{key}")


# -- round trips ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_exact_gives_back_the_very_files(tmp_path, kind):
    paths = make_run(tmp_path / "run", checkpoints=4, kind=kind)
    pack(find_snapshots(paths), tmp_path / "a", EXACT)
    archive = Archive(tmp_path / "a")
    assert archive.steps == [8, 16, 24, 32]
    for step, path in zip(archive.steps, paths, strict=True):
        out = archive.unpack(step, tmp_path / f"out-{step}")
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert archive.verify() == []


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("rule", ["adaptive", "tensor", "element"])
def test_near_gives_back_everything_but_weights_and_moments_exactly(tmp_path, kind, rule):
    paths = make_run(tmp_path / "run", checkpoints=4, kind=kind)
    pack(find_snapshots(paths), tmp_path / "a", PackSettings(near=NearSettings(rule=rule)))
    archive = Archive(tmp_path / "a")
    for step, path in zip(archive.steps, paths, strict=True):
        file = archive.unpack(step, tmp_path / f"out-{step}") / path.name
        assert zipfile.ZipFile(file).testzip() is None
        before, after = dict(leaves(load_state(path))), dict(leaves(load_state(file)))
        assert before.keys() == after.keys()
        assert load_state(file)["note"] == "kept as it is"
        for name, tensor in before.items():
            kept = "running" in name or "rng" in name or name.endswith(("/step", "num_batches_tracked"))
            assert torch.equal(tensor, after[name]) if kept else tensor.shape == after[name].shape, name
    weights = [name for name in before if name.startswith("/model") and name.endswith("weight") and "norm" not in name]
    for name in weights:
        moved = dict(leaves(load_state(paths[-2])))[name] - before[name]
        key_frame = before[name].std() / (256 * 12**0.5)  # rows that never moved keep its rounding
        allowed = max(moved.std(), 1.2 * key_frame) * (1 if rule == "adaptive" else 3)
        assert (after[name] - before[name]).std() < allowed, name
    assert archive.verify() == []


def odd_state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    tied = draw(5, 3)
    weights = {
        "tied.a": tied, "tied.b": tied, "turned": tied.t(), "half": draw(7).half(), "brain": draw(3, 3, 3).to(torch.bfloat16),
        "empty": torch.zeros(0, 4), "scalar": torch.tensor(step), "odd": draw(1), "flags": draw(13) > 0,
        "bytes": torch.arange(11, dtype=torch.uint8), "double": draw(6).double(), "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    }  # fmt: skip
    state = {0: {"exp_avg": draw(5, 3), "exp_avg_sq": draw(5, 3) ** 2, "step": torch.tensor(float(step))}}
    return {
        "step": step,
        "model": weights,
        "optimizer": {"state": state, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    }


@pytest.mark.parametrize("mode", ["exact", "near"])
def test_any_shape_and_dtype_and_ties(tmp_path, mode):
    for step in (1, 2, 3):
        torch.save(odd_state(step), tmp_path / f"step-{step}.pt")
    pack(find_snapshots([tmp_path / f"step-{step}.pt" for step in (1, 2, 3)]), tmp_path / "a", PackSettings(mode=mode))
    file = Archive(tmp_path / "a").unpack(3, tmp_path / "out") / "step-3.pt"
    back, true = load_state(file), odd_state(3)
    assert (
        back["model"]["tied.a"].data_ptr() == back["model"]["tied.b"].data_ptr() == back["model"]["turned"].data_ptr()
    )
    for name, tensor in true["model"].items():
        if mode == "exact" or (not name.startswith("t")):
            assert torch.equal(torch.nan_to_num(back["model"][name].double()), torch.nan_to_num(tensor.double())), name
    if mode == "exact":
        assert file.read_bytes() == (tmp_path / "step-3.pt").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_with_wide_moments(tmp_path, dtype):
    weight = torch.randn(64, 80)
    for step in range(1, 6):
        weight += 0.01 * torch.randn(64, 80)
        state = {"w": {"exp_avg": torch.randn(64, 80), "exp_avg_sq": torch.rand(64, 80) * 1e-9}}
        torch.save(
            {"step": step, "model": {"w": weight.to(dtype)}, "optimizer": {"state": state}}, tmp_path / f"s-{step}.pt"
        )
    pack(find_snapshots([tmp_path]), tmp_path / "a", NEAR)
    back = load_state(Archive(tmp_path / "a").unpack(5, tmp_path / "out") / "s-5.pt")
    assert back["model"]["w"].dtype == dtype
    assert (back["model"]["w"].float() - weight).abs().max() < 0.06
    assert Archive(tmp_path / "a").verify() == []


def test_a_nan_in_a_weight_is_kept_exactly(tmp_path):
    paths = make_run(tmp_path / "run", checkpoints=3)
    state = torch.load(paths[1], weights_only=True)
    state["model"]["middle.weight"][3, 4] = float("nan")
    torch.save(state, paths[1])
    pack(find_snapshots(paths), tmp_path / "a", NEAR)
    for k, step in enumerate((8, 16, 24)):
        back = load_state(Archive(tmp_path / "a").unpack(step, tmp_path / f"o{k}") / f"step-{step}.pt")["model"][
            "middle.weight"
        ]
        assert int(torch.isnan(back).sum()) == (1 if step == 16 else 0)


def test_random_access_gives_what_unpacking_gives(archives, tmp_path):
    for mode, folder in archives.items():
        archive = Archive(folder)
        file = archive.unpack(40, tmp_path / mode) / "step-40.pt"
        state = load_state(file)
        assert torch.equal(archive.tensor(40, "model/middle.weight"), state["model"]["middle.weight"])
        assert torch.equal(
            archive.tensor(40, "optimizer/state/0/exp_avg_sq"), state["optimizer"]["state"][0]["exp_avg_sq"]
        )
        with pytest.raises(ArtifactError, match="no tensor 'nope'"):
            archive.tensor(40, "nope")


def test_all_steps_at_once_equal_one_at_a_time(archives, tmp_path):
    for mode, folder in archives.items():
        archive = Archive(folder)
        everything = archive.unpack_all(tmp_path / mode)
        assert [path.name for path in everything] == [f"step-{step}" for step in archive.steps]
        for step, path in zip(archive.steps, everything, strict=True):
            alone = archive.unpack(step, tmp_path / f"{mode}-{step}")
            assert (alone / f"step-{step}.pt").read_bytes() == (path / f"step-{step}.pt").read_bytes()


def test_safetensors_come_back_as_the_same_file(tmp_path):
    for step in (1, 2):
        save_file(
            {"w": torch.randn(40, 30) / step, "b": torch.randn(3).to(torch.bfloat16)},
            tmp_path / f"m-{step}.safetensors",
        )
    pack(find_snapshots([tmp_path]), tmp_path / "a", EXACT)
    out = Archive(tmp_path / "a").unpack(2, tmp_path / "out")
    assert (out / "m-2.safetensors").read_bytes() == (tmp_path / "m-2.safetensors").read_bytes()
    assert set(load_file(out / "m-2.safetensors")) == {"w", "b"}


# -- key frames and pruning ----------------------------------------------------------------------------------------
def test_key_frames_bound_what_a_step_needs(archives):
    for folder in archives.values():
        index = Archive(folder).index
        assert [entry.key for entry in index.entries] == [True, False, False, True, False]
        assert [entry.step for entry in index.chain(4)] == [32, 40]


@pytest.mark.parametrize("mode", ["exact", "near"])
def test_pruning_frees_bytes_and_keeps_what_is_kept(archives, tmp_path, mode):
    folder = shutil.copytree(archives[mode], tmp_path / "a")
    before = {
        step: (Archive(folder).unpack(step, tmp_path / f"b{step}") / f"step-{step}.pt").read_bytes()
        for step in (24, 40)
    }
    archive = Archive(folder)
    assert archive.prune([24, 40]) == 0  # 8 and 16 carry 24, 32 carries 40
    assert archive.steps == Archive(folder).steps == [24, 40]
    for step, data in before.items():
        assert (Archive(folder).unpack(step, tmp_path / f"a{step}") / f"step-{step}.pt").read_bytes() == data
    with pytest.raises(ArtifactError, match="no step 16; it holds 24, 40"):
        Archive(folder).unpack(16, tmp_path / "no")
    frames = sum(path.stat().st_size for path in folder.glob("*.frame"))
    assert Archive(folder).prune([40]) == frames - sum(path.stat().st_size for path in folder.glob("*.frame")) > 0
    assert (Archive(folder).unpack(40, tmp_path / "last") / "step-40.pt").read_bytes() == before[40]
    assert Archive(folder).verify() == []
    with pytest.raises(InputError, match="every step"):
        Archive(folder).prune([])
    with pytest.raises(ArtifactError, match="no step 3"):
        Archive(folder).prune([3])


def test_packing_goes_on_after_pruning(archives, run, tmp_path):
    folder = shutil.copytree(archives["exact"], tmp_path / "a")
    Archive(folder).prune([40])
    state = torch.load(run[-1], weights_only=True)
    torch.save({**state, "step": 48}, tmp_path / "step-48.pt")
    pack(find_snapshots([tmp_path / "step-48.pt"]), folder)
    assert Archive(folder).steps == [40, 48]
    assert (Archive(folder).unpack(48, tmp_path / "o") / "step-48.pt").read_bytes() == (
        tmp_path / "step-48.pt"
    ).read_bytes()


# -- damage --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["exact", "near"])
def test_a_flipped_bit_anywhere_is_found_and_nothing_appears(archives, tmp_path, mode):
    folder = shutil.copytree(archives[mode], tmp_path / "a")
    choose = random.Random(0)
    named = 0
    for number in range(16):
        file = choose.choice(sorted(path for path in folder.iterdir() if path.name != ".lock"))
        data = file.read_bytes()
        position = choose.randrange(len(data))
        file.write_bytes(data[:position] + bytes([data[position] ^ (1 << choose.randrange(8))]) + data[position + 1 :])
        try:
            problems = Archive(folder).verify()
            failed = 0
            for step in Archive(folder).steps:
                try:
                    Archive(folder).unpack(step, tmp_path / f"o{number}-{step}")
                except ArtifactError as error:
                    failed += 1
                    named += "tensor '" in str(error)
                    assert not (tmp_path / f"o{number}-{step}").exists()
            assert (failed > 0) == bool(problems)
            assert failed or file.name.startswith("step")  # eight bytes of magic at the head of a frame are never read
            if not failed:
                assert position < 8
        except ArtifactError:
            assert file.name == "index.json"
        file.write_bytes(data)
    assert named > 4
    assert Archive(folder).verify() == []


@pytest.mark.parametrize("name", ["index.json", "step-000000024.frame", "step-000000040.frame"])
def test_a_cut_file_is_found(archives, tmp_path, name):
    folder = shutil.copytree(archives["near"], tmp_path / "a")
    data = (folder / name).read_bytes()
    for cut in [0, 1, 7, 60, len(data) // 2, len(data) - 2]:
        (folder / name).write_bytes(data[:cut])
        with pytest.raises(ArtifactError):
            Archive(folder).unpack(40 if "40" in name else 24, tmp_path / "o")
        assert not (tmp_path / "o").exists()
    (folder / name).write_bytes(data + b"more")
    with pytest.raises(ArtifactError):
        Archive(folder).unpack(40 if "40" in name else 24, tmp_path / "o")


def test_a_missing_frame_is_named(archives, tmp_path):
    folder = shutil.copytree(archives["near"], tmp_path / "a")
    (folder / "step-000000032.frame").unlink()
    with pytest.raises(ArtifactError, match="step-000000032"):
        Archive(folder).unpack(40, tmp_path / "o")
    assert (Archive(folder).unpack(24, tmp_path / "fine") / "step-24.pt").exists()
    assert any("step-000000032" in problem for problem in Archive(folder).verify())


def test_frames_of_another_archive_are_refused(archives, tmp_path):
    folder = shutil.copytree(archives["near"], tmp_path / "a")
    shutil.copy(archives["exact"] / "step-000000040.frame", folder / "step-000000040.frame")
    with pytest.raises(ArtifactError, match="damaged"):
        Archive(folder).unpack(40, tmp_path / "o")


def test_a_step_that_does_not_exist_lists_those_that_do(archives, tmp_path):
    with pytest.raises(ArtifactError, match="no step 7; it holds 8, 16, 24, 32, 40"):
        Archive(archives["near"]).unpack(7, tmp_path / "o")


def test_what_is_no_archive_says_so(tmp_path):
    with pytest.raises(ArtifactError, match="no checkpoint archive"):
        Archive(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 99, "archive": {}, "sha256": ""}))
    with pytest.raises(ArtifactError, match="format 99"):
        Archive(tmp_path)


def test_an_index_that_points_outside_is_refused(archives, tmp_path):
    from lessen.checkpoints import index as index_module

    folder = shutil.copytree(archives["near"], tmp_path / "a")
    index = index_module.read_index(folder)
    index.entries[0] = replace(index.entries[0], file="../x.frame")
    index_module.write_index(folder, index)
    with pytest.raises(ArtifactError, match="outside"):
        Archive(folder)


def test_unpacking_never_overwrites(archives, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        Archive(archives["near"]).unpack(8, tmp_path / "o")
    assert (tmp_path / "o" / "mine").read_text() == "x"


# -- frozen layers -------------------------------------------------------------------------------------------------
def test_frozen_layers_stay_exact_and_trained_ones_of_the_same_shape_become_near(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(*[torch.nn.Linear(80, 80, bias=False) for _ in range(4)])
    for layer in (net[0], net[2]):
        layer.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    for step in range(1, 7):
        optimizer.zero_grad()
        net(torch.randn(16, 80)).square().mean().backward()
        optimizer.step()
        torch.save(
            {"step": step, "model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / f"s-{step}.pt"
        )
    pack(find_snapshots([tmp_path]), tmp_path / "a", NEAR)
    entries = Archive(tmp_path / "a").entries
    assert [entry.key for entry in entries] == [True, True, False, False, False, False]  # known from the second step on
    back = load_state(Archive(tmp_path / "a").unpack(6, tmp_path / "o") / "s-6.pt")["model"]
    true = net.state_dict()
    for name in ("0.weight", "2.weight"):
        assert torch.equal(back[name], true[name])
    for name in ("1.weight", "3.weight"):
        assert not torch.equal(back[name], true[name])
        assert torch.allclose(back[name], true[name], atol=2e-3)
    moved = 2 * 3 * 80 * 80 * 4
    assert entries[-1].bytes < moved / 10
