from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
from lessen.checkpoints.byte_map import read_byte_map
from lessen.checkpoints.harmless import strangers
from lessen.checkpoints.pickles import Built, Named, read_pickle
from lessen.errors import ArtifactError

EXACT = PackSettings(mode="exact")
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
]  # fmt: skip


def noise(shape, dtype, generator) -> torch.Tensor:
    """Random bits as a tensor of any dtype."""
    size = torch.empty((), dtype=dtype).element_size()
    count = int(np.prod(shape)) * size
    data = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def by_name(file) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    data = file.read_bytes()
    found = read_byte_map(file, file.name).arrays
    return {a.name: (a.kind, a.shape, data[a.offset : a.offset + a.nbytes]) for a in found}


# -- identity ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(12))
def test_every_tensor_is_found_under_its_own_name(tmp_path, seed):
    """Against torch.load: many tensors of equal size, so that a guess by offset or size would be wrong."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tree: dict = {"model": collections.OrderedDict(), "extra": [], "inner": {"deep": ()}}
    for number in range(40):
        shape = choose.choice([(), (64,), (8, 8), (4, 4, 4), (16, 8)])
        tensor = noise(shape, choose.choice(DTYPES), generator)
        place = choose.choice(["model", "extra", "deep"])
        if place == "model":
            tree["model"][f"{number}.w"] = nn.Parameter(tensor, tensor.is_floating_point() and choose.random() < 0.5)
        elif place == "extra":
            tree["extra"].append(tensor)
        else:
            tree["inner"]["deep"] += (tensor,)
    torch.save(tree, tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    wanted = {f"model/{key}": value for key, value in loaded["model"].items()}
    wanted |= {f"extra/{key}": value for key, value in enumerate(loaded["extra"])}
    wanted |= {f"inner/deep/{key}": value for key, value in enumerate(loaded["inner"]["deep"])}
    found = by_name(tmp_path / "x.pt")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name][1:] == (tuple(tensor.shape), raw(tensor)), name


@pytest.mark.parametrize("mode", ["near", "exact"])
def test_a_complex_table_before_the_weights_does_not_shift_their_names(tmp_path, mode):
    torch.manual_seed(0)
    state = {
        "step": 1,
        "freqs_cis": torch.randn(64, 64, dtype=torch.complex64),
        "prompt": {"w": torch.randn(128, 64)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(128, 64) * 0.01}}},
    }
    torch.save(state, tmp_path / "s-1.pt")
    pack(find_snapshots([tmp_path / "s-1.pt"]), tmp_path / "a", PackSettings(mode=mode))
    archive = Archive(tmp_path / "a")
    back = torch.load(archive.unpack(1, tmp_path / "o") / "s-1.pt", weights_only=True)
    assert torch.equal(back["freqs_cis"], state["freqs_cis"])
    assert torch.equal(archive.tensor(1, "freqs_cis"), state["freqs_cis"])
    error = (archive.tensor(1, "prompt/w") - state["prompt"]["w"]).norm() / state["prompt"]["w"].norm()
    assert error == 0 if mode == "exact" else 0 < error < 0.01
    assert torch.equal(archive.tensor(1, "prompt/w"), back["prompt"]["w"])


@pytest.mark.parametrize("mode", ["near", "exact"])
def test_every_dtype_comes_back_byte_for_byte_over_a_series(tmp_path, mode):
    paths = []
    for step in (1, 2, 3):
        generator = torch.Generator().manual_seed(step)
        state = {str(dtype): noise((130, 6), dtype, generator) for dtype in DTYPES}
        state["sparse"] = torch.eye(70).to_sparse()
        state["csr"] = torch.eye(70).to_sparse_csr() * step
        state["moments"] = {"state": {0: {"exp_avg": torch.randn(9, 9), "exp_avg_sq": torch.rand(9, 9)}}}
        paths.append(tmp_path / f"s-{step}.pt")
        torch.save({"step": step, "w": torch.randn(9, 9), **state}, paths[-1])
    pack(find_snapshots(paths), tmp_path / "a", PackSettings(mode=mode))
    archive = Archive(tmp_path / "a")
    assert archive.verify() == []
    out = archive.unpack(3, tmp_path / "o") / "s-3.pt"
    if mode == "exact":
        assert out.read_bytes() == paths[-1].read_bytes()
    back, true = torch.load(out, weights_only=True), torch.load(paths[-1], weights_only=True)
    for dtype in DTYPES:
        assert raw(back[str(dtype)]) == raw(true[str(dtype)]), dtype
        assert raw(archive.tensor(3, str(dtype))) == raw(true[str(dtype)]), dtype
        assert archive.tensor(3, str(dtype)).dtype == dtype
    assert torch.equal(archive.tensor(3, "sparse/values"), torch.ones(70))
    assert torch.equal(archive.tensor(3, "csr/values"), 3 * torch.ones(70))


def test_a_storage_that_is_read_as_two_dtypes_is_bytes(tmp_path):
    torch.save({"f": torch.randn(32, 32), "i": torch.ones(32, 32, dtype=torch.int32)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):  # torch refuses to write it: let the second tensor name the first record
                data = data.replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000")
            new.writestr(name, data)
    found = by_name(tmp_path / "y.pt")
    assert {kind for kind, *_ in found.values()} == {"U8"}
    assert found["f"][1] == (4096,)


def test_views_subclasses_and_quantised_tensors_name_their_storage(tmp_path):
    base = torch.randn(6, 4)
    quantised = torch.quantize_per_tensor(torch.randn(40), 0.1, 3, torch.qint8)
    torch.save(
        {"row": base[2], "turned": base.t(), "q": quantised, "args": argparse.Namespace(table=torch.arange(7))},
        tmp_path / "x.pt",
    )
    found = by_name(tmp_path / "x.pt")
    assert found["row"][0] == "F32"
    assert found["q"] == ("I8", (40,), raw(quantised.int_repr()))
    assert found["args/table"][2] == raw(torch.arange(7))


# -- the reader of pickles -----------------------------------------------------------------------------------------
def structure(node):
    """What a tree of plain values is, sets and objects by their names."""
    if isinstance(node, Built):
        return node.name, [structure(item) for item in [*node.arguments, *node.items]]
    if isinstance(node, Named):
        return node.name
    if isinstance(node, dict):
        return {key: structure(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(structure(value) for value in node)
    return node


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_themselves_in_every_protocol(protocol):
    plain = {
        "a": [1, -1, 255, 70_000, 1 << 80, True, False, None, 1.5, float("inf")],
        2: ("x", "é", "y" * 300),
        (): {},
        "tuple": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "shared": [[0]] * 2,
    }
    tree, names = read_pickle(pickle.dumps(plain, protocol), "x")
    assert tree == plain
    assert tree["shared"][0] is tree["shared"][1]
    assert names == []
    tree, names = read_pickle(pickle.dumps([{1, 2}, frozenset("a"), b"xyz", bytearray(b"q")], protocol), "x")
    assert strangers(names) == []


def test_nothing_of_a_hostile_pickle_is_called(tmp_path):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    tree, names = read_pickle(pickle.dumps({"x": Attack()}), "x")
    assert structure(tree) == {"x": ("posix.mkdir", [str(marker)])}
    assert strangers(names) == ["posix.mkdir"]
    assert not marker.exists()


def test_damaged_pickles_end_in_one_named_error():
    choose = random.Random(0)
    whole = pickle.dumps({"a": [1, 2.5, "x", (3,)], "b": np.arange(3), "c": {1}}, 4)
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(choose.randint(1, 3)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        try:
            read_pickle(bytes(data[: choose.randint(1, len(data))]), "x")
        except ArtifactError as error:
            assert "x is damaged" in str(error)


def test_a_tree_that_refers_to_itself_or_doubles_is_walked_once(tmp_path):
    loop: list = [torch.ones(3)]
    loop.append(loop)
    bomb: list = [torch.zeros(2)]
    for _ in range(60):
        bomb = [bomb, bomb]
    torch.save({"loop": loop, "bomb": bomb}, tmp_path / "x.pt")
    assert len(read_byte_map(tmp_path / "x.pt", "x.pt").arrays) == 2


def test_damaged_torch_files_end_in_one_named_error(tmp_path):
    choose = random.Random(0)
    torch.save({"a": torch.randn(9), "b": {"c": torch.ones(3, dtype=torch.complex64)}}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(choose.randint(1, 4)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        (tmp_path / "y.pt").write_bytes(data)
        try:
            read_byte_map(tmp_path / "y.pt", "y.pt")
        except ArtifactError as error:
            assert "y.pt" in str(error)


def test_a_zip_without_an_index_and_one_with_a_record_twice_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/data/0", b"1234")
    with pytest.raises(ArtifactError, match=r"no torch checkpoint"):
        read_byte_map(tmp_path / "x.pt", "x.pt")
    memory = io.BytesIO()
    torch.save({"a": torch.ones(4)}, memory)
    with zipfile.ZipFile(memory, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    (tmp_path / "y.pt").write_bytes(memory.getvalue())
    with pytest.raises(ArtifactError, match="twice"):
        read_byte_map(tmp_path / "y.pt", "y.pt")


# -- distributed checkpoints ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["near", "exact"])
def test_distributed_checkpoints_come_back_and_load(tmp_path, mode):
    """As torch.distributed.checkpoint writes them; what is unpacked is loaded by it again."""
    checkpoint = pytest.importorskip("torch.distributed.checkpoint", reason="this torch has no distributed checkpoints")
    torch.manual_seed(0)
    net = nn.Linear(96, 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    states = {}
    for step in (1, 2, 3):
        optimizer.zero_grad()
        net(torch.randn(32, 96)).square().mean().backward()
        optimizer.step()
        names = [name for name, _ in net.named_parameters()]
        moments = {name: optimizer.state_dict()["state"][k] for k, name in enumerate(names)}
        states[step] = {
            "model": {name: tensor.clone() for name, tensor in net.state_dict().items()},
            "optimizer": {
                "state": {name: {leaf: value.clone() for leaf, value in part.items()} for name, part in moments.items()}
            },
        }
        checkpoint.save(states[step], checkpoint_id=str(tmp_path / "run" / f"step-{step}"))
    pack(find_snapshots([tmp_path / "run"]), tmp_path / "a", PackSettings(mode=mode))
    archive = Archive(tmp_path / "a")
    assert archive.verify() == []
    assert [entry.key for entry in archive.entries] == [True, False, False]
    out = archive.unpack(3, tmp_path / "o")
    weight = states[3]["model"]["weight"]
    if mode == "exact":
        for file in (tmp_path / "run" / "step-3").iterdir():
            assert (out / file.name).read_bytes() == file.read_bytes()
        assert torch.equal(archive.tensor(3, "model/weight"), weight)
    back = {"model": {name: torch.zeros_like(tensor) for name, tensor in states[3]["model"].items()}}
    checkpoint.load(back, checkpoint_id=str(out))
    error = (back["model"]["weight"] - weight).norm() / weight.norm()
    assert error == 0 if mode == "exact" else 0 < error < 0.03
    assert torch.equal(archive.tensor(3, "model/weight"), back["model"]["weight"])
    (tmp_path / "run" / "step-3" / ".metadata").unlink()
    with pytest.raises(ArtifactError, match=r"lies without its \.metadata"):
        read_byte_map(tmp_path / "run" / "step-3" / "__0_0.distcp", "x.distcp")
