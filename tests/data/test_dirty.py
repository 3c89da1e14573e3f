"""Dirty logs: every kind of fault in one run, rows left out and counted, words for nothing, ISO times, even samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lessen import cli
from lessen.data import numbers
from lessen.data.encode import SplitRule, encode_logs
from lessen.data.folder import Dataset
from lessen.data.infer import infer
from lessen.data.schema import FieldSchema, Schema, dump_schema
from lessen.errors import DataError

FIELDS = (
    FieldSchema(name="click", kind="label"),
    FieldSchema(name="user", kind="categorical"),
    FieldSchema(name="price", kind="numeric"),
    FieldSchema(name="time", kind="timestamp"),
    FieldSchema(name="weight", kind="weight"),
)
SCHEMA = Schema(fields=FIELDS)
GOOD = ["click,user,price,time,weight", *(f"{n % 2},u{n % 7},{n}.5,{1000 + n},1" for n in range(100))]


def dirty() -> list[str]:
    lines = list(GOOD)
    lines[11] = "1,u1,cheap,1010,1"
    lines[12] = "1,u1,dear,1011,1"
    lines[20] = "1,u1,,1019,1"
    lines[30] = "2,u1,1,1029,1"
    lines[40] = "1,u1,1,soon,1"
    lines[50] = "1,u1,1,1049,-1"
    lines[60] = "1,u1,1"
    lines[70] = "1,u1,1,1069,1,7,8"
    return lines


def written(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("by", ["fraction", "time"])
@pytest.mark.parametrize("piece_bytes", [300, 1 << 20])
def test_one_run_names_every_kind_of_fault(tmp_path: Path, by: str, piece_bytes: int) -> None:
    with pytest.raises(DataError) as caught:
        encode_logs(
            [written(tmp_path / "a.csv", dirty())], SCHEMA, tmp_path / "out", SplitRule(by=by), piece_bytes=piece_bytes
        )  # type: ignore[arg-type]
    said = str(caught.value)
    for expected in (
        "line 12, column 'price': 'cheap' is not a finite number (1 more like it)",
        "line 21, column 'price': is empty",
        "line 31, column 'click': '2' is no label",
        "line 41, column 'time': 'soon' is not a finite number",
        "line 51, column 'weight': is a negative weight",
        "line 61: 3 cells where 5 are expected",
        "8 bad rows in all",
        "--skip-bad N",
    ):
        assert expected in said, expected
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("by", ["fraction", "time"])
def test_bad_rows_are_left_out_counted_and_shown(tmp_path: Path, by: str) -> None:
    path = written(tmp_path / "a.csv", dirty())
    with pytest.raises(DataError, match="bad rows in all, reading stopped there, 7 are allowed"):
        encode_logs([path], SCHEMA, tmp_path / "no", SplitRule(by=by), skip_bad=7)  # type: ignore[arg-type]
    rule = SplitRule(by=by)  # type: ignore[arg-type]
    data = encode_logs([path], SCHEMA, tmp_path / "out", rule, skip_bad=8, piece_bytes=500)
    assert sum(data.rows.values()) == 92
    assert len(data.left_out) == 6
    assert "'cheap' is not a finite number (1 more like it)" in " ".join(data.left_out)
    clean = [line for place, line in enumerate(dirty()) if place not in (11, 12, 20, 30, 40, 50, 60, 70)]
    same = encode_logs([written(tmp_path / "b.csv", clean)], SCHEMA, tmp_path / "clean", rule)
    for name in ("timestamp", "numeric") if by == "time" else ():
        for split in data.rows:
            assert np.array_equal(data.array(split, name), same.array(split, name))
    assert Dataset(tmp_path / "out").left_out == data.left_out


def test_the_command_shows_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, schema = written(tmp_path / "a.csv", dirty()), tmp_path / "schema.yaml"
    schema.write_text(dump_schema(SCHEMA))
    command = ["data", "encode", path, "-s", str(schema), "-o"]
    assert cli.execute([*command, str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.execute([*command, str(tmp_path / "out"), "--skip-bad", "10"]) == 0
    assert "left out: " in capsys.readouterr().out
    assert cli.execute([*command, str(tmp_path / "out"), "--skip-bad", "10", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["left_out"]) == 6


def test_broken_json_lines_are_left_out_too(tmp_path: Path) -> None:
    lines = [json.dumps({"click": n % 2, "user": f"u{n}", "price": n, "time": n, "weight": 1}) for n in range(20)]
    lines[5] = lines[5][:-4]
    schema = SCHEMA.model_copy(update={"format": "jsonl"})
    path = written(tmp_path / "a.jsonl", lines)
    with pytest.raises(DataError, match="line 6: not one JSON object a line.*only bad row; --skip-bad 1"):
        encode_logs([path], schema, tmp_path / "no")
    data = encode_logs([path], schema, tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)), skip_bad=1)
    assert data.array("train", "timestamp").tolist() == [float(n) for n in range(20) if n != 5]


def test_lines_are_named_behind_newlines_inside_quotes(tmp_path: Path) -> None:
    lines = list(GOOD)
    lines[3] = '1,"u\n\n1",1,1002,1'
    lines[30] = "1,u1,cheap,1029,1"
    with pytest.raises(DataError, match="a.csv, line 33, column 'price'"):
        encode_logs([written(tmp_path / "a.csv", lines)], SCHEMA, tmp_path / "out")


def test_words_for_nothing_are_told_and_can_be_listed(tmp_path: Path) -> None:
    lines = [line.replace(",3.5,", ",NULL,") for line in GOOD]
    path = written(tmp_path / "a.csv", lines)
    with pytest.raises(DataError, match=r"'NULL' is not a finite number; if it means empty, list it under 'missing'"):
        encode_logs([path], SCHEMA, tmp_path / "no")
    found = infer([path]).schema
    assert found.missing == ("NULL",)
    price = next(field for field in found.fields if field.name == "price")
    assert (price.kind, price.fill) == ("numeric", 0.0)
    data = encode_logs([path], found, tmp_path / "out")
    assert sum(data.rows.values()) == 100
    assert np.array_equal(
        data.encoder.encode_row({"user": "u1", "price": "NULL"})["numeric"],
        data.encoder.encode_row({"user": "u1", "price": None})["numeric"],
    )


@pytest.mark.parametrize(
    "form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f+00:00", "%Y-%m-%d %H:%M:%S.%f"]
)
def test_iso_times_are_seconds(tmp_path: Path, form: str) -> None:
    stamps = np.datetime64("2024-05-01T12:00:00") + np.arange(100).astype("timedelta64[h]")
    lines = [GOOD[0], *(f"{n % 2},u{n % 7},1,{s.item().strftime(form)},1" for n, s in enumerate(stamps))]
    path = written(tmp_path / "a.csv", lines)
    assert next(f.kind for f in infer([path]).schema.fields if f.name == "time") == "timestamp"
    data = encode_logs([path], SCHEMA, tmp_path / "out", SplitRule(by="time"))
    assert data.array("train", "timestamp").tolist() == stamps[:80].astype("datetime64[s]").astype(float).tolist()


def test_offsets_and_days_of_iso_times(tmp_path: Path) -> None:
    lines = [GOOD[0], "1,a,1,2024-05-01T14:00:00+02:00,1", "0,b,1,2024-05-01,1", "0,b,1,1714564800,1"] * 1
    data = encode_logs(
        [written(tmp_path / "a.csv", lines)], SCHEMA, tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0))
    )
    assert data.array("train", "timestamp").tolist() == [1714564800.0, 1714521600.0, 1714564800.0]


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_quantile_edges_come_from_the_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    """A log that is sorted and longer than the sample has its tenths where any other has them."""
    monkeypatch.setattr(numbers, "QUANTILE_SAMPLE", 2_000)
    values = np.random.default_rng(0).lognormal(size=20_000)
    values = np.sort(values) if order == "sorted" else values
    pl.DataFrame({"click": np.arange(20_000) % 2, "v": values}).write_csv(tmp_path / "a.csv")
    fields = (FIELDS[0], FieldSchema(name="v", kind="numeric", transform="quantile", bins=10))
    rule = SplitRule(fractions=(1.0, 0.0, 0.0))
    data = encode_logs([str(tmp_path / "a.csv")], Schema(fields=fields), tmp_path / "out", rule, piece_bytes=20_000)
    other = encode_logs([str(tmp_path / "a.csv")], Schema(fields=fields), tmp_path / "other", rule)
    assert data.encoder.numbers == other.encoder.numbers  # whatever the pieces
    counts = np.bincount(data.array("train", "ids")[:, 0])
    assert np.abs(counts[counts > 0] / 20_000 - 0.1).max() < 0.03
