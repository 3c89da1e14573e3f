from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lessen.cli import execute


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, rows in (("train.csv", 300), ("valid.csv", 80), ("test.csv", 80)):
        ids = generator.integers(0, 6, (rows, 3))
        labels = generator.random(rows) < np.where(ids[:, 0] < 3, 0.9, 0.1)
        lines = [f"{int(label)},{','.join(map(str, row))}" for label, row in zip(labels, ids, strict=True)]
        (folder / name).write_text("\n".join(["label,user_id,item_id,tag_id", *lines]) + "\n")
    return folder


def test_run_and_check(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["bars", "run", "MovielensLatest_x1", "deepfm", "--data", str(files), "--out", str(out), "--own-split",
               "--epochs", "2", "--seed", "1", "--seed", "2"]  # fmt: skip
    assert execute(command) == 0
    shown = capsys.readouterr().out
    assert "0.9685" in shown
    assert "published lies" in shown
    assert "not the published files" in shown
    results = sorted(map(str, out.glob("*.json")))
    assert len(results) == 2
    assert execute(["bars", "check", "--json", *results]) == 0
    auc, loss = json.loads(capsys.readouterr().out)
    assert auc["seeds"] == [1, 2]
    assert auc["low"] < auc["value"] < auc["high"]
    assert loss["published"] == 0.213002


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "test.csv").unlink(), "test.csv does not exist"),
        (lambda f: (f / "train.csv").write_text("label,user,item_id,tag_id\n1,2,3,4\n"), "lacks the column 'user_id'"),
        (lambda f: None, "is not the published file: its MD5 is"),
    ],
)
def test_wrong_files_are_one_line_and_status_2(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, message: str
) -> None:
    change(files)  # type: ignore[operator]
    command = ["bars", "run", "MovielensLatest_x1", "lr", "--data", str(files), "--out", str(tmp_path / "out")]
    assert execute(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("lessen: ")
    assert message in last
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_unpublished_pairs_and_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bars", "run", "Frappe_x1", "din"]) == 2
    assert "published no settings and no figure for din on Frappe_x1" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("{}")
    assert execute(["bars", "check", str(tmp_path / "a.json")]) == 2
    assert "is no result of lessen bars run" in capsys.readouterr().err
    assert execute(["bars", "run", "Frappe_x1", "lr", "--updates", "sparse"]) == 2
    assert "is not one of dense, lazy-adam" in capsys.readouterr().err


def test_list_shows_what_was_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bars", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["Criteo_x1"]["finalmlp"]["auc"] == 0.814902
    assert execute(["bars", "list"]) == 0
    assert "0.9842" in capsys.readouterr().out
