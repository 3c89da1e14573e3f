"""The list of bad inputs, each by name: one line with file, line and column, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lessen import cli
from lessen.data.encode import SplitRule, encode_logs
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import DataError, LessenError
from lessen.files import TEMPORARY

SCHEMA = Schema(
    fields=(
        FieldSchema(name="click", kind="label"),
        FieldSchema(name="user", kind="categorical"),
        FieldSchema(name="price", kind="numeric"),
        FieldSchema(name="time", kind="timestamp"),
        FieldSchema(name="weight", kind="weight"),
    )
)


def lines_of(rows: int = 40) -> list[str]:
    return ["click,user,price,time,weight", *(f"{n % 2},u{n % 7},{n}.5,{1000 + n},1" for n in range(rows))]


def refused(tmp_path: Path, lines: list[str], match: str, schema: Schema = SCHEMA, name: str = "log.csv") -> None:
    (tmp_path / name).write_text("\n".join(lines) + "\n" if lines else "")
    with pytest.raises(LessenError, match=match) as caught:
        encode_logs([str(tmp_path / name)], schema, tmp_path / "out", piece_bytes=400)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("change", ["{},more", "{}"])
@pytest.mark.parametrize("quoted", [False, True])
def test_ragged_row(tmp_path: Path, change: str, quoted: bool) -> None:
    lines = lines_of()
    lines[20] = change.format(lines[20]) if "more" in change else lines[20].rpartition(",")[0]
    cells = 6 if "more" in change else 4
    if quoted:  # commas, newlines and quotes inside a cell are no cells and no rows
        lines[5] = lines[5].replace("u4", '"u,\n""4"')
    refused(tmp_path, lines, rf"log.csv, line {22 if quoted else 21}: {cells} cells where 5 are expected")


def test_quoted_cells_are_not_ragged(tmp_path: Path) -> None:
    lines = lines_of()
    lines[5] = lines[5].replace("u4", '"u,\n""4"')
    (tmp_path / "log.csv").write_text("\n".join(lines))
    dataset = encode_logs([str(tmp_path / "log.csv")], SCHEMA, tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)))
    assert dataset.rows["train"] == 40
    assert 'u,\n"4' in dataset.encoder.vocabularies["user"].values.to_list()  # type: ignore[union-attr]


def test_wrong_delimiter(tmp_path: Path) -> None:
    refused(tmp_path, [line.replace(",", ";") for line in lines_of()], r"log.csv lacks the column 'click'.*separator")


@pytest.mark.parametrize("value", ["cheap", "nan", "1e999", "0x10"])
def test_mixed_types(tmp_path: Path, value: str) -> None:
    lines = lines_of()
    lines[30] = f"1,u1,{value},1029,1"
    refused(tmp_path, lines, rf"log.csv, line 31, column 'price': '{value}' is not a finite number")


def test_mixed_types_in_json_lines(tmp_path: Path) -> None:
    rows = [{"click": n % 2, "user": n, "price": 1.5, "time": n, "weight": 1} for n in range(30)]
    rows[12]["price"] = "cheap"
    schema = SCHEMA.model_copy(update={"format": "jsonl"})
    refused(tmp_path, [json.dumps(row) for row in rows], r"log.jsonl, line 13, column 'price'", schema, "log.jsonl")


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "", "yes"])
def test_label_outside_zero_and_one(tmp_path: Path, value: str) -> None:
    lines = lines_of()
    lines[30] = f"{value},u1,1.0,1029,1"
    refused(tmp_path, lines, rf"log.csv, line 31, column 'click': '{value}' is no label; labels are 0 or 1")


def test_negative_weight_and_broken_time(tmp_path: Path) -> None:
    lines = lines_of()
    lines[30] = "1,u1,1.0,1029,-1"
    refused(tmp_path, lines, r"log.csv, line 31, column 'weight': is a negative weight")
    lines[30] = "1,u1,1.0,yesterday,1"
    refused(tmp_path, lines, r"log.csv, line 31, column 'time': 'yesterday' is not a finite number")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_field_absent_from_one_file(tmp_path: Path, kind: str) -> None:
    columns = {
        "click": [0, 1] * 5,
        "user": ["a"] * 10,
        "price": [1.0] * 10,
        "time": list(range(10)),
        "weight": [1] * 10,
    }
    whole = pl.DataFrame(columns)
    paths = [tmp_path / f"{name}.{kind}" for name in ("a", "b")]
    for path, frame in zip(paths, (whole, whole.drop("price")), strict=True):
        writer = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind]
        writer(path)
    schema = SCHEMA.model_copy(update={"format": kind})
    with pytest.raises(DataError, match=rf"b.{kind} lacks the column 'price'"):
        encode_logs([str(path) for path in paths], schema, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_timestamps_out_of_order_are_split_by_their_value(tmp_path: Path) -> None:
    """A log need not be sorted: the newest rows are the test split wherever they stand, in any file."""
    lines = lines_of(200)
    mixed = [lines[0], *np.random.default_rng(0).permutation(lines[1:]).tolist()]
    found = []
    for name, rows in (("sorted", lines), ("mixed", mixed)):
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
        data = encode_logs([str(tmp_path / f"{name}.csv")], SCHEMA, tmp_path / name, SplitRule(by="time"))
        found.append({split: set(data.array(split, "timestamp").tolist()) for split in data.rows})
    assert found[0] == found[1]
    assert max(found[1]["train"]) < min(found[1]["validation"]) <= max(found[1]["validation"]) < min(found[1]["test"])


@pytest.mark.parametrize("kind", ["csv", "parquet", "hashed"])
def test_ids_above_two_to_the_31_stay_apart(tmp_path: Path, kind: str) -> None:
    ids = [2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**32 + 1, 2**53 + 1, 2**53, 2**63 - 1] * 6
    columns = {"click": [0, 1] * 24, "user": ids, "price": [1.0] * 48, "time": list(range(48)), "weight": [1] * 48}
    frame = pl.DataFrame(columns)
    path = tmp_path / ("log.parquet" if kind == "parquet" else "log.csv")
    frame.write_parquet(path) if kind == "parquet" else frame.write_csv(path)
    user = FieldSchema(name="user", kind="categorical", buckets=10**6 if kind == "hashed" else None)
    fields = tuple(user if field.name == "user" else field for field in SCHEMA.fields)
    schema = Schema(format="parquet" if kind == "parquet" else "csv", fields=fields)
    data = encode_logs([str(path)], schema, tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)))
    encoded = data.array("train", "ids")[:, 0]
    assert encoded.dtype == np.int32
    assert len(set(encoded.tolist())) == 8
    one = data.encoder.encode_row({"user": 2**53 + 1, "price": 1.0})
    assert one["ids"][0, 0] == encoded[5]


@pytest.mark.parametrize("content", [[], ["click,user,price,time,weight"]])
def test_empty_file(tmp_path: Path, content: list[str]) -> None:
    refused(tmp_path, content, r"log.csv (is empty|holds no row below its header)")


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from lessen import cli
raise SystemExit(cli.execute(sys.argv[2:]))
"""


@pytest.mark.parametrize("allowed", [300, 20_000])
def test_disk_that_fills(tmp_path: Path, allowed: int) -> None:
    """The system refuses to let files grow, at the first array or half-way: one line, status 2, nothing left."""
    (tmp_path / "log.csv").write_text("\n".join(lines_of(20_000)))
    assert cli.execute(["data", "infer", str(tmp_path / "log.csv"), "--out", str(tmp_path / "schema.yaml")]) == 0
    command = ["data", "encode", str(tmp_path / "log.csv"), "-s", str(tmp_path / "schema.yaml"), "-o"]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(allowed), *command, str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "free space" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "schema.yaml"]
