from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib

import pytest
import torch
from safetensors.torch import save_file

from lessen.checkpoints.byte_map import read_byte_map
from lessen.checkpoints.torch_files import refresh_sums
from lessen.errors import ArtifactError


def arrays_of(path) -> dict[str, bytes]:
    data = path.read_bytes()
    mapped = read_byte_map(path, path.name)
    return {array.name: data[array.offset : array.offset + array.nbytes] for array in mapped.arrays}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.uint8],
)
@pytest.mark.parametrize("shape", [(3, 5), (7,), (2, 3, 4), ()])
def test_torch_tensors_are_found_where_they_lie(tmp_path, dtype, shape):
    tensors = {"a": torch.randint(0, 2, shape).to(dtype), "deep": {"list": [torch.randint(0, 2, shape).to(dtype)]}}
    torch.save(tensors, tmp_path / "x.pt")
    found = arrays_of(tmp_path / "x.pt")
    assert found["a"] == bits(tensors["a"])
    assert found["deep/list/0"] == bits(tensors["deep"]["list"][0])
    shapes = {array.name: array.shape for array in read_byte_map(tmp_path / "x.pt", "x.pt").arrays}
    assert shapes["a"] == shape


def test_tied_weights_are_one_array_and_views_are_their_whole(tmp_path):
    base = torch.randn(6, 4)
    torch.save({"a": base, "tied": base, "row": base[2], "turned": base.t()}, tmp_path / "x.pt")
    mapped = read_byte_map(tmp_path / "x.pt", "x.pt")
    assert len(mapped.arrays) == 1
    assert mapped.arrays[0].shape == (6, 4)
    assert arrays_of(tmp_path / "x.pt") == {"a": bits(base)}


def test_sparse_tensors_are_their_indices_and_values(tmp_path):
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.5, 2.5], (4,))
    torch.save({"s": sparse}, tmp_path / "x.pt")
    assert set(arrays_of(tmp_path / "x.pt")) == {"s/indices", "s/values"}


def test_gaps_and_arrays_make_the_file(tmp_path):
    torch.save({"a": torch.randn(50), "text": "x" * 99}, tmp_path / "x.pt")
    mapped = read_byte_map(tmp_path / "x.pt", "x.pt")
    parts = sorted([*mapped.gaps(), *[(array.offset, array.nbytes) for array in mapped.arrays]])
    at = 0
    for offset, length in parts:
        assert offset == at
        at += length
    assert at == (tmp_path / "x.pt").stat().st_size


def test_safetensors_are_read_without_loading(tmp_path):
    tensors = {"w": torch.randn(3, 4), "h": torch.randn(5).to(torch.bfloat16), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = arrays_of(tmp_path / "x.safetensors")
    assert found == {"w": bits(tensors["w"]), "h": bits(tensors["h"])}


def test_dtypes_that_this_release_does_not_know_are_bytes(tmp_path):
    entries = {
        "new": {"dtype": "X9", "shape": [6], "data_offsets": [0, 5]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [5, 13]},
    }
    (tmp_path / "x.safetensors").write_bytes(header(entries) + bytes(range(13)))
    mapped = read_byte_map(tmp_path / "x.safetensors", "x.safetensors")
    assert [(array.name, array.kind, array.nbytes) for array in mapped.arrays] == [("new", "U8", 5), ("w", "F32", 8)]


def test_two_f4_numbers_share_a_byte(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(
        header({"q": {"dtype": "F4", "shape": [3, 8], "data_offsets": [0, 12]}}) + bytes(12)
    )
    assert read_byte_map(tmp_path / "x.safetensors", "x.safetensors").arrays[0].shape == (3, 4)


# -- bad files -----------------------------------------------------------------------------------------------------
class Attack:
    """A pickle that would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class Mine:
    """A class that nobody listed."""


@pytest.mark.parametrize("name", ["x.pth.tar", "x.pt", "x.bin", "x.ckpt", "x.pth"])
def test_a_pickle_that_would_run_code_is_refused_with_the_reason(tmp_path, name):
    torch.save({"a": torch.randn(3), "bad": Attack(tmp_path / "marker")}, tmp_path / name)
    with pytest.raises(ArtifactError, match=r"refused.*would run code.*mkdir"):
        read_byte_map(tmp_path / name, name)
    assert not (tmp_path / "marker").exists()


def test_an_unknown_class_is_refused_by_name(tmp_path):
    torch.save({"args": Mine()}, tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=r"refused.*Mine.*--allow"):
        read_byte_map(tmp_path / "x.pt", "x.pt")
    name = f"{Mine.__module__}.Mine"
    assert read_byte_map(tmp_path / "x.pt", "x.pt", allow=[name]).arrays == ()


def test_a_torch_file_cut_anywhere_is_refused(tmp_path):
    torch.save({"a": torch.randn(40)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    for cut in range(0, len(data), 29):
        (tmp_path / "cut.pt").write_bytes(data[:cut])
        with pytest.raises(ArtifactError):
            read_byte_map(tmp_path / "cut.pt", "cut.pt")


def test_the_old_torch_format_says_what_to_do(tmp_path):
    torch.save({"a": torch.randn(4)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match="save it again"):
        read_byte_map(tmp_path / "x.pt", "x.pt")


def header(entries) -> bytes:
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"\xff" * 64, "cut short"),
        (struct.pack("<Q", 4) + b"nope", "malformed"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + bytes(8), "not those of its shape"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + bytes(4), "leaves the file"),
        (header({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}) + bytes(8), "shape"),
        (header({"a": {"dtype": 9, "shape": [2], "data_offsets": [0, 8]}}) + bytes(8), "shape"),
        (header({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}) + bytes(8), "shape|malformed"),
        (header({"a": 7}) + bytes(8), "malformed"),
        (
            header({n: {"dtype": "F32", "shape": [2], "data_offsets": [b, b + 8]} for n, b in [("a", 0), ("b", 4)]})
            + bytes(12),
            "overlaps",
        ),
    ],
)
def test_hostile_safetensors_are_refused(tmp_path, data, reason):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match=reason):
        read_byte_map(tmp_path / "x.safetensors", "x.safetensors")


def test_compressed_records_say_what_to_do(tmp_path):
    torch.save({"a": torch.randn(400)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info.filename))
    with pytest.raises(ArtifactError, match=r"torch\.save|damaged"):
        read_byte_map(tmp_path / "y.pt", "y.pt")


def test_changed_records_get_fresh_sums(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.randn(400), "b": torch.arange(9)}, path)
    mapped = read_byte_map(path, "x.pt")
    data = bytearray(path.read_bytes())
    sums = {}
    for array in mapped.arrays:
        data[array.offset] ^= 1
        sums[array.offset] = zlib.crc32(data[array.offset : array.offset + array.nbytes])
    gaps = {offset: bytearray(data[offset : offset + length]) for offset, length in mapped.gaps()}
    refresh_sums(path, gaps, sums)
    for offset, gap in gaps.items():
        data[offset : offset + len(gap)] = gap
    (tmp_path / "y.pt").write_bytes(data)
    assert zipfile.ZipFile(tmp_path / "y.pt").testzip() is None
