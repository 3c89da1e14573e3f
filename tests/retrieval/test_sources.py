"""Files of vectors are read as they are, and what is wrong with one is named."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from lessen.errors import DataError
from lessen.retrieval.sources import read_all, read_vectors

ROWS = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


def fvecs(path, rows):
    wide = np.concatenate([np.full((len(rows), 1), rows.shape[1], np.int32), rows.view(np.int32)], axis=1)
    path.write_bytes(wide.tobytes())
    return path


def test_all_kinds_hold_the_same_rows(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    fvecs(tmp_path / "a.fvecs", ROWS)
    pl.DataFrame({"vector": ROWS.tolist(), "id": list("abcdefg")}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"other": ROWS.tolist()}).write_parquet(tmp_path / "b.parquet")
    for name in ("a.npy", "a.fvecs", "a.parquet"):
        found = read_all(tmp_path / name)
        assert torch.equal(found.vectors, torch.from_numpy(ROWS))
        assert found.ids == (list("abcdefg") if name == "a.parquet" else [str(n) for n in range(7)])
    assert read_all(tmp_path / "b.parquet", "other").ids[:2] == ["0", "1"]
    assert [len(one.ids) for one in read_vectors(tmp_path / "a.npy", size=3)] == [3, 3, 1]


def test_what_cannot_be_read_is_named(tmp_path):
    np.save(tmp_path / "flat.npy", ROWS[0])
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    torn = fvecs(tmp_path / "torn.fvecs", ROWS)
    torn.write_bytes(torn.read_bytes()[:-3])
    mixed = fvecs(tmp_path / "mixed.fvecs", ROWS)
    raw = bytearray(mixed.read_bytes())
    raw[24:28] = np.int32(9).tobytes()
    mixed.write_bytes(raw)
    pl.DataFrame({"vector": [[1.0, 2.0], [1.0]]}).write_parquet(tmp_path / "ragged.parquet")
    pl.DataFrame({"vector": ["x", "y"]}).write_parquet(tmp_path / "words.parquet")
    (tmp_path / "a.csv").write_text("1,2")
    cases = {
        "flat.npy": r"float32 of shape \[5\]",
        "words.npy": "give a matrix of numbers",
        "torn.npy": "as .npy",
        "torn.fvecs": "no whole number of vectors of width 5",
        "mixed.fvecs": "row 1: width 9, and 5 before it",
        "ragged.parquet": "row 2: its vector is missing or of another width",
        "words.parquet": "no vectors of floats",
        "a.csv": "must end in .npy",
        "absent.npy": "no file of vectors",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            read_all(tmp_path / name)
    with pytest.raises(DataError, match="no column 'v'"):
        read_all(tmp_path / "ragged.parquet", "v")
