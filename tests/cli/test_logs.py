"""`lessen data infer` and `encode`: from a file to a data set by commands, every mistake one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lessen import cli
from lessen.data.folder import Dataset
from lessen.data.infer import infer
from lessen.data.schema import load_schema


def write_log(path: Path, rows: int = 300, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    lines = ["click,user_id,tags,price,weight,time"]
    for row in range(rows):
        tags = "|".join(f"t{n}" for n in generator.integers(0, 5, 2))
        price = f"{generator.random():.3f}" if row % 10 else ""
        lines.append(
            f"{generator.integers(0, 2)},u{generator.integers(0, 40)},{tags},{price},{1 + row % 3},{1000 + row}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_inferred_yaml_says_why_and_reads_back(tmp_path: Path) -> None:
    found = infer([write_log(tmp_path / "a.csv")])
    kinds = {field.name: field.kind for field in found.schema.fields}
    assert kinds == {
        "click": "label",
        "user_id": "categorical",
        "tags": "multi",
        "price": "numeric",
        "weight": "weight",
        "time": "timestamp",
    }
    text = found.text()
    assert "# user_id: 40 distinct in 300 rows, none empty, such as 'u" in text
    assert "# price:" in text
    assert "10.0 % empty" in text
    (tmp_path / "schema.yaml").write_text(text)
    assert load_schema(tmp_path / "schema.yaml") == found.schema


def test_hostile_names_and_values_cannot_leave_their_comment(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = "\n".join(f'{n % 2},"x\ny: [{n}"' for n in range(40))
    path.write_text('click,"odd: {, # name"\n' + rows + "\n")
    found = infer([path])
    (tmp_path / "schema.yaml").write_text(found.text())
    assert load_schema(tmp_path / "schema.yaml") == found.schema


def test_infer_then_encode_by_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, schema, out = write_log(tmp_path / "a.csv"), tmp_path / "schema.yaml", tmp_path / "data"
    assert cli.execute(["data", "infer", str(log)]) == 0
    printed = capsys.readouterr().out
    assert cli.execute(["data", "infer", str(log), "--out", str(schema)]) == 0
    assert schema.read_text() == printed
    schema.write_text(schema.read_text().replace("kind: multi", "kind: sequence"))
    capsys.readouterr()
    assert (
        cli.execute(["data", "encode", str(log), "-s", str(schema), "-o", str(out), "--split", "time", "--json"]) == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["rows"] == {"train": 240, "validation": 30, "test": 30}
    assert Dataset(out).layout.field("tags").kind == "sequence"
    assert cli.execute(["data", "infer", str(log), "--out", str(schema)]) == 2
    assert "may hold your edits" in capsys.readouterr().err


def test_given_splits_and_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = [str(write_log(tmp_path / f"{name}.csv", seed=n)) for n, name in enumerate("abc")]
    schema, out = str(tmp_path / "schema.yaml"), str(tmp_path / "data")
    assert cli.execute(["data", "infer", *logs, "--out", schema]) == 0
    start = ["data", "encode", logs[0], "--schema", schema, "--out", out]
    for options, message in (
        (["--validation", logs[1]], "go together"),
        (["--split", "user"], "fraction or time"),
        (["--fractions", "a,b"], "expected three numbers"),
    ):
        assert cli.execute([*start, *options]) == 2
        assert message in capsys.readouterr().err
    assert cli.execute([*start, "--validation", logs[1], "--test", logs[2]]) == 0
    assert Dataset(Path(out)).rows == {"train": 300, "validation": 300, "test": 300}


def test_a_field_absent_from_one_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = write_log(tmp_path / "a.csv"), tmp_path / "b.csv"
    other.write_text("click,user_id\n1,u1\n")
    assert cli.execute(["data", "infer", str(first), str(other)]) == 2
    assert "b.csv lacks the column 'tags'" in capsys.readouterr().err
