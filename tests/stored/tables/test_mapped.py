from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lessen import files
from lessen.errors import ArtifactError, DataError, NonFiniteError, OutputError
from lessen.log import Log
from lessen.stored.tables import rowwise
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.mapped import open_quantized, write_quantized
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding


@pytest.fixture
def weight():
    return torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))


def written(path, weight, bits=4):
    write_quantized(path, TableShape(1000, 10, segments=[("a", 0, 600)]), weight.split(300), bits)
    return path


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_mapped_table_is_that_quantised_in_memory_bit_for_bit(tmp_path, weight, bits):
    path = written(tmp_path / "table.safetensors", weight, bits)
    mapped = open_quantized(path)
    whole = QuantizedEmbedding.from_dense(nn.Embedding.from_pretrained(weight), bits)
    assert torch.equal(mapped.packed, whole.packed)
    ids = torch.randint(0, 1000, (7, 3), dtype=torch.int32)
    assert torch.equal(mapped(ids), whole(ids))
    assert torch.equal(load_file(path)["packed"], whole.packed)
    assert mapped.segments[0].rows == 600
    assert path.stat().st_size - 1000 * rowwise.row_bytes(10, bits) < 512


def test_writing_fails_whole(tmp_path, weight):
    path, shape = tmp_path / "table", TableShape(1000, 10)
    with pytest.raises(DataError, match="hold 600 rows"):
        write_quantized(path, shape, weight[:600].split(300), 8)
    with pytest.raises(DataError, match="at row 900"):
        write_quantized(path, shape, [weight[:900], weight[:200]], 8)
    with pytest.raises(DataError, match="use 8 bits"):
        write_quantized(path, shape, [weight * 1e6], 4)
    weight[450, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="starts at row 300"):
        write_quantized(path, shape, weight.split(300), 8)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_leaves_nothing(tmp_path, weight, monkeypatch):
    class Full(files.FileLayer):
        calls = 0

        def write(self, handle, data):
            self.calls += 1
            if self.calls == 3:
                raise OSError(28, "No space left on device")
            super().write(handle, data)

    monkeypatch.setattr(files, "FILES", Full())
    with pytest.raises(OutputError, match="No space left"):
        written(tmp_path / "table", weight)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(tmp_path, weight):
    raw = written(tmp_path / "good", weight).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length]
    faults = {
        "empty": b"",
        "short": raw[:7],
        "cut": raw[:-1],
        "longer": raw + b"x",
        "no header": raw[:8],
        "huge header": (2**60).to_bytes(8, "little") + raw[8:],
        "not json": raw[:8] + b"x" * length + raw[8 + length :],
        "other kind": raw.replace(b"quantized-embedding", b"quantized-embeddinG"),
        "other shape": raw.replace(b'"shape":[1000,', b'"shape":[1001,'),
        "hostile rows": raw.replace(b'\\"num_embeddings\\": 1000', b'\\"num_embeddings\\":-1000'),
    }
    assert all(name in ("empty", "short") or fault != raw for name, fault in faults.items())
    assert b"num_embeddings" in header
    for name, fault in faults.items():
        path = tmp_path / name
        path.write_bytes(fault)
        with pytest.raises(ArtifactError):
            open_quantized(path)
    with pytest.raises(ArtifactError, match="cannot read"):
        open_quantized(tmp_path / "absent")


def test_writing_reports_its_progress_from_the_first_row_to_the_last(tmp_path):
    seen = []

    class Recorder(Log):
        def progress(self, what, done, total):
            seen.append((done, total))

    write_quantized(tmp_path / "table", TableShape(10, 4), torch.randn(10, 4).split(4), 8, log=Recorder())
    assert seen == [(0, 10), (4, 10), (8, 10), (10, 10)]
