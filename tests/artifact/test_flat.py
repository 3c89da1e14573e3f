"""One file for an artifact: byte for byte, sums that add up, and damage that is named."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
import torch
from torch import nn

from benchmarks.sparsity.tiny import TinyTransformer
from lessen.artifact import folder as artifact
from lessen.artifact.flat import MAGIC, read_flat, write_flat
from lessen.errors import ArtifactError
from lessen.method import Context
from lessen.methods.weights.weight_clustering import WeightClustering
from lessen.testing.toys import TableTask


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 14))


@pytest.fixture
def saved(tmp_path):
    made = WeightClustering().apply(model(), TableTask(), Context())
    artifact.save(tmp_path / "small", made, model())
    return tmp_path, made


def test_it_comes_back_byte_for_byte_and_adds_up(saved):
    folder, made = saved
    sizes = write_flat(folder / "small", folder / "small.flat")
    assert sizes.total == (folder / "small.flat").stat().st_size
    read_flat(folder / "small.flat", folder / "again")
    for file in (folder / "small").iterdir():
        assert (folder / "again" / file.name).read_bytes() == file.read_bytes()
    loaded = artifact.load(folder / "again", model=model())
    given = torch.randn(3, 64)
    assert torch.equal(loaded(given), made(given))
    held = sum(t.numel() * t.element_size() for t in made.state_dict().values())
    assert held <= sizes.raw_weights < held + 64
    assert sizes.weights <= sizes.raw_weights
    assert sizes.total < 0.9 * sum(file.stat().st_size for file in (folder / "small").iterdir())


def test_the_tiny_transformer_takes_less_than_ten_thousand_bytes(tmp_path):
    torch.manual_seed(0)
    net = TinyTransformer()
    assert sum(parameter.numel() for parameter in net.parameters()) == 13_262
    made = WeightClustering().apply(net, TableTask(), Context())
    artifact.save(tmp_path / "tiny", made, TinyTransformer())
    sizes = write_flat(tmp_path / "tiny", tmp_path / "tiny.flat")
    assert sizes.weights + sizes.graph + sizes.metadata == (tmp_path / "tiny.flat").stat().st_size <= 10_000


def test_damage_is_named_and_nothing_is_written(saved):
    folder, _ = saved
    write_flat(folder / "small", folder / "small.flat")
    raw = (folder / "small.flat").read_bytes()
    (length,) = struct.unpack_from("<I", raw, len(MAGIC))
    start = len(MAGIC) + 4

    def with_index(change):
        index = json.loads(zlib.decompress(raw[start : start + length]))
        change(index)
        packed = zlib.compress(json.dumps(index).encode())
        return MAGIC + struct.pack("<I", len(packed)) + packed + raw[start + length :]

    wrong = {
        "no flat artifact": b"PK" + raw,
        "cut short or damaged": raw[:-3],
        "is damaged": raw[: start + length] + bytes(len(raw) - start - length),
        "the index is damaged": with_index(lambda index: index["parts"][0].update(name="../../etc/x")),
        "does not hold the bytes": with_index(lambda index: index["parts"][0].update(bytes=5)),
    }
    for said, content in wrong.items():
        (folder / "bad.flat").write_bytes(content)
        with pytest.raises(ArtifactError, match=said):
            read_flat(folder / "bad.flat", folder / "made")
        assert not (folder / "made").exists()


def test_only_artifacts_are_written(tmp_path):
    with pytest.raises(ArtifactError, match="holds no manifest"):
        write_flat(tmp_path, tmp_path / "x.flat")
