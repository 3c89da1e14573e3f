"""`encode_row` gives the ids and numbers that the file path gives, for values of every type that callers hold."""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from lessen.data import vocabulary
from lessen.data.encode import SplitRule, encode_logs
from lessen.data.folder import Dataset
from lessen.data.readers import Piece
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import DataError

ALL = SplitRule(fractions=(1.0, 0.0, 0.0))
FIELDS = (
    FieldSchema(name="click", kind="label"),
    FieldSchema(name="x", kind="categorical"),
    FieldSchema(name="h", kind="categorical", buckets=997),
    FieldSchema(name="many", kind="multi", length=3),
    FieldSchema(name="p", kind="numeric", fill=-7.0),
)


def draw_item(draw: random.Random) -> Any:
    """Return a number, truth value, text or nothing."""
    return draw.choice(
        [
            draw.randint(-(2**63), 2**64 - 1),
            draw.randint(-20, 20),
            draw.uniform(-9, 9),
            round(draw.uniform(-9, 9), 1),
            float(draw.randint(-30, 30)),
            10.0 ** draw.randint(-300, 300),
            draw.uniform(-1, 1) * 2.0**60,
            True,
            None,
            float("nan"),
            "".join(draw.choice("ab|;,\"' \n\té01.-") for _ in range(draw.randint(0, 5))),
        ]
    )


def same(data: Dataset, row: dict[str, Any], place: int) -> None:
    found = data.encoder.encode_row(row)
    assert found["ids"][0].tolist() == data.array("train", "ids")[place].tolist(), row
    assert found["numeric"][0].tolist() == data.array("train", "numeric")[place].tolist(), row


def test_json_rows_are_encoded_as_their_file(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [
        {
            "click": n % 2,
            "x": draw_item(draw),
            "h": draw_item(draw),
            "p": draw.uniform(-1e9, 1e9),
            "many": [draw_item(draw) for _ in range(draw.randint(0, 4))],
        }
        for n in range(200)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = encode_logs(
        [str(tmp_path / "a.jsonl")], Schema(format="jsonl", fields=one_spelling()), tmp_path / "out", ALL
    )
    for place, row in enumerate(rows):
        same(data, row, place)


def one_spelling() -> tuple[FieldSchema, ...]:
    return tuple(f.model_copy(update={"spelling": "number"}) if f.name in ("x", "many") else f for f in FIELDS)


KINDS: dict[str, Any] = {
    "int8": pl.Series([1, -1, 0, 7], dtype=pl.Int8),
    "uint64": pl.Series([2**64 - 1, 0, 1, 5], dtype=pl.UInt64),
    "float32": pl.Series([0.1, 1.0, 1e10, float("nan")], dtype=pl.Float32),
    "float64": pl.Series([0.1, 1.0, 1e-7, 1e300]),
    "bool": pl.Series([True, False, None, True]),
    "text": pl.Series(["a", "1", "", None]),
    "date": pl.Series([dt.date(2024, 1, n) for n in (1, 2, 3, 4)]),
    "datetime": pl.Series([dt.datetime(2024, 1, 1, n, 0, n, n * 1000) for n in (0, 1, 2, 3)]),
    "zone": pl.Series([dt.datetime(2024, 1, 1, n) for n in (0, 1, 2, 3)], dtype=pl.Datetime("us", "UTC")),
    "time": pl.Series([dt.time(n, 5) for n in (0, 1, 2, 3)]),
    "duration": pl.Series([dt.timedelta(seconds=n) for n in (0, 1, 2, 90)]),
    "decimal": pl.Series([decimal.Decimal("1.50"), decimal.Decimal("2.00"), decimal.Decimal("0.01"), None]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_rows_are_encoded_as_their_file(tmp_path: Path, kind: str) -> None:
    column = KINDS[kind]
    lists = [column.to_list()[:n] for n in range(4)]
    frame = pl.DataFrame(
        {
            "click": [0, 1, 0, 1],
            "x": column,
            "h": column,
            "p": [1.5, None, math.nan, -2.0],
            "many": pl.Series(lists, dtype=pl.List(column.dtype)),
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    data = encode_logs([str(tmp_path / "a.parquet")], Schema(format="parquet", fields=FIELDS), tmp_path / "out", ALL)
    for place, row in enumerate(frame.iter_rows(named=True)):
        same(data, row, place)
        same(data, {**row, "many": column[:place]}, place)
        if kind in ("int8", "uint64", "float32", "float64", "datetime"):
            value = column.to_numpy()[place]
            same(data, {**row, "x": value, "h": np.asarray(value), "many": column[:place].to_numpy()}, place)
        if kind in ("int8", "float32", "float64"):
            same(data, {**row, "many": tuple(column[:place].to_numpy())}, place)


class NAType:
    """Stands for pandas' NA, which compares to nothing."""

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


class Frame:
    """Stands for a pandas series: it has a length and is walked through."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Any:
        return iter(self.values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("served")
    lines = ["click,x,h,many,p", *(f"{n % 2},{n % 5 or ''},{n % 5},{n % 5}|{n % 3},{n / 4 or ''}" for n in range(60))]
    (folder / "a.csv").write_text("\n".join(lines) + "\n")
    return encode_logs([str(folder / "a.csv")], Schema(fields=FIELDS), folder / "out", ALL)


@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.float32("nan"), np.datetime64("NaT"), NAType(), decimal.Decimal("nan"), ""]
)
def test_whatever_is_missing_is_empty(data: Dataset, missing: Any) -> None:
    whole = {"x": "", "h": 0, "many": [0, 0], "p": ""}
    expected = data.encoder.encode_row(whole)
    found = data.encoder.encode_row({**whole, "x": missing, "p": missing, "many": [0, missing, 0]})
    assert found["ids"].tolist() == expected["ids"].tolist()
    assert found["numeric"].tolist() == expected["numeric"].tolist()


def test_other_lists_and_tensors(data: Dataset) -> None:
    expected = data.encoder.encode_row({"x": "3", "h": "3", "many": "3|1", "p": "2.5"})
    for many in (
        [3, 1],
        (3.0, 1),
        np.array([3, 1]),
        np.array(["3", "1"], dtype=object),
        Frame([np.int64(3), "1"]),
        pl.Series([3, 1]),
        torch.tensor([3, 1]),
    ):
        row = {"x": torch.tensor(3), "h": np.str_("3"), "many": many, "p": np.float64(2.5)}
        assert data.encoder.encode_row(row)["ids"].tolist() == expected["ids"].tolist()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"x": [1, 2]}, "field 'x' is given several values"),
        ({"x": object()}, "field 'x' is given a object"),
        ({"x": b"\xff"}, "field 'x' is given bytes"),
        ({"many": {1, 2}}, "field 'many' is given a set"),
        ({"many": np.ones((2, 2))}, "field 'many' is given an array of shape"),
        ({"p": "dear"}, "column 'p': 'dear'"),
        ({"p": float("inf")}, "column 'p': 'inf' is not a finite number"),
    ],
)
def test_what_no_file_holds_is_refused_by_field(data: Dataset, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        data.encoder.encode_row({"x": "1", "h": "1", "many": "1", "p": "1", **row})


def test_a_folder_of_the_first_edition_serves_as_it_did(tmp_path: Path, data: Dataset) -> None:
    """Version 1 hashed numbers by the text of their type: 3.0 as '3.0'. Its folders keep doing so."""
    import shutil

    old = tmp_path / "old"
    shutil.copytree(data.folder, old)
    described = json.loads((old / "dataset.json").read_text())
    described["version"] = 1
    del described["left_out"]
    for field in described["schema"]["fields"]:
        del field["spelling"]
    for name in ("quote", "encoding", "missing"):
        del described["schema"][name]
    for entry in described["vocabularies"].values():
        del entry["exact"]
    (old / "dataset.json").write_text(json.dumps(described))
    first = Dataset(old).encoder
    row = {"x": "3", "many": ["1", 2], "p": 1.0}
    hashed = [first.encode_row({**row, "h": value})["ids"][0, 1] for value in (3.0, "3.0", "3", np.int64(3))]
    assert hashed[0] == hashed[1] != hashed[2] == hashed[3]
    assert first.encode_row({**row, "h": 3})["ids"].tolist() == data.encoder.encode_row({**row, "h": 3})["ids"].tolist()


WORDS = (
    "",
    "7",
    "07",
    "7.0",
    "-0",
    "0",
    "0.10",
    "0.1",
    "1e3",
    "1000",
    "True",
    "1",
    "nan",
    "x",
    "1e400",
    "é",
    " 7",
    "12",
)


@pytest.mark.parametrize("indexed", [vocabulary.INDEXED, 0])
def test_a_row_found_by_look_ups_is_what_the_path_of_files_makes_of_it(tmp_path: Path, monkeypatch, indexed) -> None:
    """Every word against every other as what was trained on: each kind of field, spelled by number, exactly, hashed."""
    fields = (
        FieldSchema(name="click", kind="label"),
        FieldSchema(name="auto", kind="categorical"),
        FieldSchema(name="number", kind="categorical", spelling="number"),
        FieldSchema(name="exact", kind="categorical", spelling="exact"),
        FieldSchema(name="shared", kind="categorical", vocabulary="number"),
        FieldSchema(name="hashed", kind="categorical", buckets=50),
        FieldSchema(name="hashed-exact", kind="categorical", buckets=50, spelling="exact"),
        FieldSchema(name="plain", kind="numeric", fill=3.0),
        FieldSchema(name="scaled", kind="numeric", fill=-1.0, transform="standard"),
        FieldSchema(name="bucketed", kind="numeric", fill=3.0, transform="quantile", bins=3),
        FieldSchema(name="list", kind="multi", length=2),
    )
    names = [spec.name for spec in fields]
    numeric = ["plain", "scaled", "bucketed"]
    lines = [
        [str(n % 2), *([word] * 6), *(["", "4", "true"][n % 3] for _ in numeric), f"{word}|7"]
        for n, word in enumerate(["7", "0.1", "1000", "x", "1", ""] * 3)
    ]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(",".join(line) for line in [names, *lines]) + "\n")
    encoder = encode_logs([str(log)], Schema(fields=fields), tmp_path / "out").encoder
    monkeypatch.setattr(vocabulary, "INDEXED", indexed)
    for word, number in zip(WORDS, itertools.cycle(("", "5", "-0.0", "true", "1e-300"))):
        row = dict.fromkeys(names[1:7], word) | dict.fromkeys(numeric, number) | {"list": word}
        piece = Piece(pl.DataFrame({"click": ["0"], **{name: [text] for name, text in row.items()}}), log, 1)
        expected, found = encoder.encode(piece), encoder.encode_row(row)
        np.testing.assert_array_equal(found["ids"], expected.ids, err_msg=str(row))
        np.testing.assert_array_equal(found["numeric"], expected.numeric, err_msg=str(row))


def test_a_wide_row_makes_no_column_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"c{n}" for n in range(100)]
    fields = [FieldSchema(name=name, kind="numeric" if n % 2 else "categorical", fill=0.0 if n % 2 else None)
              for n, name in enumerate(names)]  # fmt: skip
    log = tmp_path / "log.csv"
    log.write_text("\n".join([",".join(["click", *names]), ",".join(["0"] * 101), ",".join(["1"] * 101)]) + "\n")
    schema = Schema(fields=(FieldSchema(name="click", kind="label"), *fields))
    encoder = encode_logs([str(log)], schema, tmp_path / "out").encoder
    encoder.encode_row(dict.fromkeys(names, "1"))
    columns = []
    made = pl.Series.__init__
    monkeypatch.setattr(pl.Series, "__init__", lambda self, *a, **k: columns.append(1) or made(self, *a, **k))
    found = encoder.encode_row(dict.fromkeys(names, 1) | {"c0": "never seen", "c1": None})
    assert (found["ids"][0, 0], found["numeric"][0, 0]) == (encoder.first_row["c0"], 0.0)
    assert len(columns) < 30
