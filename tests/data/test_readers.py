"""What people have: packed and cut files, names that lie, encodings, quotes, JSON and Parquet of every shape."""

from __future__ import annotations

import bz2
import datetime as dt
import decimal
import gzip
import json
import lzma
import random
import time
from pathlib import Path

import polars as pl
import pytest

from lessen.data.encode import SplitRule, encode_logs
from lessen.data.folder import Dataset
from lessen.data.infer import infer
from lessen.data.readers import ReadSettings, read_pieces
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import ConfigError, DataError
from lessen.log import Log

ALL = SplitRule(fractions=(1.0, 0.0, 0.0))
LABEL = FieldSchema(name="click", kind="label")


class Noted(Log):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def schema(kind: str, *fields: FieldSchema, **top: object) -> Schema:
    return Schema(format=kind, fields=(LABEL, *fields), **top)  # type: ignore[arg-type]


def categorical(name: str = "x", **knobs: object) -> FieldSchema:
    return FieldSchema(name=name, kind="categorical", **knobs)  # type: ignore[arg-type]


def multi(name: str = "x", **knobs: object) -> FieldSchema:
    return FieldSchema(name=name, kind="multi", **{"length": 4, **knobs})  # type: ignore[arg-type]


def encoded(path: Path, wanted: Schema, **options: object) -> Dataset:
    return encode_logs([str(path)], wanted, path.with_suffix(".out"), ALL, **options)  # type: ignore[arg-type]


def known(data: Dataset, name: str = "x") -> list[str]:
    return sorted(data.encoder.vocabularies[name].values.to_list())  # type: ignore[union-attr]


def rows_of(path: Path, **settings: object) -> list[tuple[object, ...]]:
    return pl.concat([p.frame for p in read_pieces(path, ReadSettings(**settings))]).rows()  # type: ignore[arg-type]


# -- packed files ---------------------------------------------------------------------------------------------------
def packers() -> dict[str, object]:
    found = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    try:
        import zstandard
    except ImportError:
        return found
    return {**found, ".zst": zstandard.ZstdCompressor().compress}


TEXT = "user,click\n" + "".join(f"u{n},{n % 2}\n" for n in range(3_000))


@pytest.mark.parametrize("suffix", packers())
def test_all_members_of_a_packed_file_are_read(tmp_path: Path, suffix: str) -> None:
    pack, path = packers()[suffix], tmp_path / f"a.csv{suffix}"
    path.write_bytes(b"".join(pack(TEXT[a:b].encode()) for a, b in ((0, 9_000), (9_000, 9_001), (9_001, None))))
    assert rows_of(path) == [(f"u{n}", str(n % 2)) for n in range(3_000)]


@pytest.mark.parametrize("suffix", packers())
def test_a_cut_packed_file_is_named_with_byte_and_line(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(0)
    text = "user,click\n" + "".join(f"u{draw.getrandbits(50)},{n % 2}\n" for n in range(20_000))
    pack, path = packers()[suffix], tmp_path / f"a.csv{suffix}"
    whole = pack(text.encode())
    for _ in range(6):
        cut = draw.randrange(20, len(whole) - 1)
        path.write_bytes(whole[:cut])
        with pytest.raises(
            DataError, match=rf"truncated: it ends at byte {cut:,}.*line [\d,]+ is the last one"
        ) as caught:
            rows_of(path)
        assert "\n" not in str(caught.value)
    if suffix in (".gz", ".zst"):  # the others unpack blocks of up to a megabyte, or nothing
        path.write_bytes(whole[: len(whole) * 8 // 10])
        with pytest.raises(DataError, match=r"line \d+,\d+ is the last"):
            rows_of(path)


@pytest.mark.parametrize("suffix", packers())
def test_bytes_behind_a_packed_stream_are_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(packers()[suffix](TEXT.encode()) + b"garbage" * 9)  # type: ignore[operator]
    with pytest.raises(DataError, match="behind its .* stream, from byte|damaged"):
        rows_of(path)


def test_names_that_lie(tmp_path: Path) -> None:
    log = Noted()
    (tmp_path / "plain.csv").write_bytes(gzip.compress(TEXT.encode()))
    pieces = read_pieces(tmp_path / "plain.csv", ReadSettings(), log=log)
    assert sum(len(piece.frame) for piece in pieces) == 3_000
    assert "is gzip by its first bytes" in log.notes[0]
    (tmp_path / "a.csv.gz").write_text(TEXT)
    with pytest.raises(DataError, match=r"a.csv.gz is not gzip as its name says: it starts with b'user"):
        rows_of(tmp_path / "a.csv.gz")
    pl.DataFrame({"click": [0, 1], "x": ["a", "b"]}).write_parquet(tmp_path / "b.csv")
    assert rows_of(tmp_path / "b.csv") == [(0, "a"), (1, "b")]
    with pytest.raises(DataError, match="is Parquet by its first bytes, not csv"):
        rows_of(tmp_path / "b.csv", format="csv")
    (tmp_path / "c.csv").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(DataError, match="zip archive; unpack it"):
        rows_of(tmp_path / "c.csv")


def test_torn_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"x": range(1_000)}).write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=rf"truncated: it ends at byte {len(whole) - 100:,} without the footer"):
        rows_of(path)
    path.write_bytes(b"PAR1" + whole[-60:])
    with pytest.raises(DataError, match="claims more bytes than the file has"):
        rows_of(path)


# -- encodings and line ends ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig"])
def test_encodings_are_read_when_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("click,x\r\n1,Zoë\r\n0,\u00e9t\u00e9\r\n".encode(name))
    assert rows_of(path, encoding=name) == [("1", "Zoë"), ("0", "été")]
    if name != "utf-8-sig":
        with pytest.raises(DataError, match="--encoding"):
            rows_of(path)
    (tmp_path / "b.jsonl").write_bytes('{"click": 1, "x": "Zoë"}\n'.encode(name))
    assert rows_of(tmp_path / "b.jsonl", encoding=name) == [("1", "Zoë")]


def test_wrong_and_unknown_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("click,x\n1,a\n0,\xff\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 3: byte 0xff is not UTF-8.*--encoding latin-1"):
        rows_of(path)
    with pytest.raises(DataError, match="is not utf-16"):
        rows_of(path, encoding="utf-16")
    for name in ("klingon", "hex"):
        with pytest.raises(ConfigError, match="--encoding"):
            ReadSettings(encoding=name)
    path.write_bytes(b"click,x\r1,a\r0,b\r")
    with pytest.raises(DataError, match="carriage returns alone"):
        rows_of(path)


# -- quotes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [700, 32 << 20])
def test_an_unbalanced_quote_is_named_at_once(tmp_path: Path, size: int) -> None:
    """2.4 MB behind one inch mark: linear time, and the line of the quote."""
    body = "".join(f"{n % 2},user{n * 7919 % 100003},{n % 5}\n" for n in range(150_000))
    path = tmp_path / "stray.csv"
    path.write_text('label,user,item\n1,u,3\n1,5" pipe,3\n' + body)
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"a quote never closes .*line 3: '1,5\" pipe,3'.*--quote none"):
        list(read_pieces(path, ReadSettings(), size=size))
    stray = time.perf_counter() - began
    path.write_text("label,user,item\n1,u,3\n1,5 pipe,3\n" + body)
    began = time.perf_counter()
    assert sum(len(piece.frame) for piece in read_pieces(path, ReadSettings(), size=size)) == 150_002
    assert stray < 20 * (time.perf_counter() - began) + 1
    path.write_text('label,user,item\n1,u,3\n1,5" pipe,3\n' + body)
    assert rows_of(path, quote=None)[1] == ("1", '5" pipe', "3")


def test_two_inch_marks_never_join_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('click,x,y\n1,5" pipe,3\n0,6" pipe,2\n1,plain,1\n')
    with pytest.raises(DataError, match="quote"):
        rows_of(path)
    assert len(rows_of(path, quote=None)) == 3
    path.write_text('click,x,y\n1,say "hi" now,3\n0,"a ""b"", c",2\n')
    assert rows_of(path) == [("1", 'say "hi" now', "3"), ("0", 'a "b", c', "2")]


def test_plain_quotes_of_tsv_are_one_switch(tmp_path: Path) -> None:
    path = tmp_path / "q.tsv"
    path.write_text("click\tx\n" + "".join(f"{n % 2}\tword{n % 5}{chr(34) if n == 30 else ''}\n" for n in range(200)))
    log = Noted()
    found = infer([path], log=log)
    assert found.schema.quote == "none"
    assert "plain characters" in log.notes[0]
    assert 'word0"' in known(encoded(path, found.schema))
    with pytest.raises(DataError, match="line 32.*--quote none"):
        infer([path], quote='"')
    assert len(rows_of(path, quote=None)) == 200


def test_a_newline_inside_a_quoted_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('click,"two\nlines, and a comma"\n1,a\n0,b,c\n')
    with pytest.raises(DataError, match="line 4: 3 cells where 2 are expected"):
        rows_of(path)
    path.write_text('click,"two\nlines, and a comma"\n1,a\n0,b\n')
    assert next(iter(read_pieces(path, ReadSettings()))).frame.columns == ["click", "two\nlines, and a comma"]


# -- JSON Lines -----------------------------------------------------------------------------------------------------
def write_json(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("piece_bytes", [300, 32 << 20])
def test_keys_may_be_absent_from_lines_pieces_and_files(tmp_path: Path, piece_bytes: int) -> None:
    rows = [{"click": n % 2, "x": f"a{n % 3}", **({"y": n % 4} if n > 50 else {})} for n in range(100)]
    paths = [write_json(tmp_path / "a.jsonl", rows[:40]), write_json(tmp_path / "b.jsonl", rows[40:])]
    wanted = schema("jsonl", categorical(), categorical("y"))
    log = Noted()
    data = encode_logs([str(p) for p in paths], wanted, tmp_path / "out", ALL, log, piece_bytes)
    assert known(data, "y") == ["", "0", "1", "2", "3"]
    assert sum("a.jsonl lacks 'y'" in note for note in log.notes) == 2  # once a pass
    with pytest.raises(DataError, match="lacks the column 'z', as every file does"):
        encode_logs([str(p) for p in paths], schema("jsonl", categorical("z")), tmp_path / "no", ALL)
    numbers = schema("jsonl", categorical(), FieldSchema(name="y", kind="numeric"))
    with pytest.raises(DataError, match="a.jsonl lacks the column 'y'"):
        encode_logs([str(p) for p in paths], numbers, tmp_path / "no", ALL)


def test_json_values_keep_their_digits_and_kinds(tmp_path: Path) -> None:
    values: list[object] = [2**63 + 1, 2**53 + 1, 2.5, "7", True, None, "a\nb", "[no list", 'q"uote', 3.0, -1]
    path = write_json(tmp_path / "a.jsonl", [{"click": n % 2, "x": v} for n, v in enumerate(values)])
    expected = [str(2**63 + 1), str(2**53 + 1), "2.5", "7", "true", "", "a\nb", "[no list", 'q"uote', "-1"]
    data = encoded(path, schema("jsonl", categorical()))
    assert set(known(data)) - {"3", "3.0"} == set(expected)
    for place, value in enumerate(values):
        assert data.encoder.encode_row({"x": value})["ids"][0, 0] == data.array("train", "ids")[place, 0], value


def test_json_nan_is_missing_and_infinity_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"click": 1, "x": "a", "p": NaN}\n{"click": 0, "x": "NaN", "p": 2}\n')
    price = FieldSchema(name="p", kind="numeric", fill=-1.0)
    data = encoded(path, schema("jsonl", categorical(), price))
    assert data.array("train", "numeric")[:, 0].tolist() == [-1.0, 2.0]
    assert known(data) == ["NaN", "a"]
    path.write_text('{"click": 1, "x": "a", "p": 1}\n{"click": 0, "x": "b", "p": -Infinity}\n')
    with pytest.raises(DataError, match="line 2, column 'p': '-inf' is not a finite number"):
        encode_logs([str(path)], schema("jsonl", categorical(), price), tmp_path / "no", ALL)


def test_json_lists_follow_the_schema_and_unused_nesting_costs_nothing(tmp_path: Path) -> None:
    rows = [
        {"click": n % 2, "x": ["a;b", f"c|{n % 2}"] if n % 3 else "d;e", "box": [[n], {"k": [1]}]} for n in range(30)
    ]
    path = write_json(tmp_path / "a.jsonl", rows)
    data = encoded(path, schema("jsonl", multi(separator=";")))
    assert known(data) == ["a;b", "c|0", "c|1", "d", "e"]
    for place in (0, 1):
        ids = data.encoder.encode_row({"x": rows[place]["x"]})["ids"][0]
        assert ids.tolist() == data.array("train", "ids")[place].tolist()
    for name, what in (("x", "a list"), ("box", "a list of lists or objects")):
        with pytest.raises(DataError, match=f"column '{name}': holds {what}"):
            encode_logs([str(path)], schema("jsonl", categorical(name)), tmp_path / "no", ALL)
    assert {f.name: f.kind for f in infer([path]).schema.fields} == {"click": "label", "x": "multi", "box": "ignore"}


def test_broken_and_cut_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for text, says in (
        ('{"a": 1}\n\n{"a": 2,}\n{"a": 3}\n', "line 3: not one JSON object a line"),
        ('{"a": 1}\n[1]\n', "line 2: not one JSON object a line but list"),
        ('{"a": 1}\n{"a": "cu', "line 2: not one JSON object a line.*the file may be cut"),
        ('{"a": 1}\n{"a": ' + "[" * 100_000 + "\n", "line 2: not one JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=says):
            rows_of(path)


# -- Parquet --------------------------------------------------------------------------------------------------------
NOW = dt.datetime(2024, 5, 1, 12, 0, 0)
COLUMNS = {
    "decimal": (pl.Series([decimal.Decimal("1.50"), decimal.Decimal(2)] * 4), ["1.5", "2"]),
    "date": (pl.Series([dt.date(2024, 1, 1 + n % 2) for n in range(8)]), ["2024-01-01", "2024-01-02"]),
    "nanoseconds": (pl.Series([NOW] * 8, dtype=pl.Datetime("ns")), ["2024-05-01 12:00:00"]),
    "zone": (pl.Series([NOW] * 8, dtype=pl.Datetime("ms", "Asia/Tokyo")), ["2024-05-01 12:00:00+00:00"]),
    "dictionary": (pl.Series(["a", "b"] * 4, dtype=pl.Categorical), ["a", "b"]),
    "nothing": (pl.Series([None] * 8), [""]),
    "floats": (pl.Series([1.0, 2.5, float("nan"), None] * 2), ["", "1", "2.5"]),
    "large": (pl.Series([2**64 - 1, 3] * 4, dtype=pl.UInt64), [str(2**64 - 1), "3"]),
    "truth": (pl.Series([True, False] * 4), ["0", "1"]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_parquet_types(tmp_path: Path, kind: str) -> None:
    column, expected = COLUMNS[kind]
    path = tmp_path / "a.parquet"
    pl.DataFrame({"click": [0, 1] * 4, "x": column}).write_parquet(path)
    data = encoded(path, schema("parquet", categorical()))
    assert known(data) == sorted(expected)
    for place in range(8):
        assert data.encoder.encode_row({"x": column[place]})["ids"][0, 0] == data.array("train", "ids")[place, 0]


def test_parquet_lists_of_any_width_with_any_text(tmp_path: Path) -> None:
    lists = [["Action|Adventure", "Drama"], ["", "Drama"], None, [], ["a|b", None, "|"]]
    path = tmp_path / "a.parquet"
    pl.DataFrame({"click": [0, 1, 0, 1, 0], "x": lists}).write_parquet(path)
    data = encoded(path, schema("parquet", multi()))
    assert known(data) == ["Action|Adventure", "Drama", "a|b", "|"]
    for place, cell in enumerate(lists):
        assert data.encoder.encode_row({"x": cell})["ids"].tolist()[0] == data.array("train", "ids")[place].tolist()
    for name, column, says in (
        ("b", pl.Series([[[1]], [[2]]]), "column 'x' holds values of type List"),
        ("c", pl.Series([{"k": 1}, {"k": 2}]), "column 'x' holds objects"),
        ("d", pl.Series([b"\xff", b"\xfe"]), "column 'x' holds bytes"),
    ):
        pl.DataFrame({"click": [0, 1], "x": column, "y": ["a", "b"]}).write_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=says):
            encoded(tmp_path / f"{name}.parquet", schema("parquet", multi()))
        assert infer([tmp_path / f"{name}.parquet"], "click").schema.fields[1].kind == "ignore"
    with pytest.raises(DataError, match="holds lists but has kind categorical"):
        encode_logs([str(path)], schema("parquet", categorical()), tmp_path / "no", ALL)


# -- one value, one text --------------------------------------------------------------------------------------------
def test_ids_of_another_type_on_another_day_are_the_same_ids(tmp_path: Path) -> None:
    frame = pl.DataFrame({"click": [0, 1] * 50, "x": [n % 10 for n in range(100)]})
    frame.write_parquet(tmp_path / "train.parquet")
    for name, change in (
        ("floats", pl.col("x").cast(pl.Float64)),
        ("text", pl.col("x").cast(pl.String)),
        ("padded", "00" + pl.col("x").cast(pl.String)),
        ("decimal", pl.col("x").cast(pl.Decimal(10, 2))),
    ):
        frame.with_columns(change.alias("x")).write_parquet(tmp_path / f"{name}.parquet")
        files = {"train": ["train"], "validation": [name], "test": [name]}
        paths = {split: [str(tmp_path / f"{n}.parquet") for n in names] for split, names in files.items()}
        for spec in (categorical(), categorical(buckets=50)):
            data = encode_logs(paths, schema("parquet", spec), tmp_path / f"{name}{spec.buckets}")
            assert data.array("test", "ids").tolist() == data.array("train", "ids").tolist()


@pytest.mark.parametrize(("one", "other"), [("1", "1.0"), ("1", "01"), ("True", "1"), ("2.5", "2.50"), ("-1", "-1.")])
def test_two_spellings_in_train_ask(tmp_path: Path, one: str, other: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("click,x\n" + "".join(f"{n % 2},{[one, other, '7', '9'][n % 4]}\n" for n in range(40)))
    with pytest.raises(DataError, match=r"the field 'x' spells 1 number in two ways.*spelling: number.*exact"):
        encoded(path, schema("csv", categorical()))
    assert len(known(encoded(path, schema("csv", categorical(spelling="number"))))) == 3
    apart = encode_logs([str(path)], schema("csv", categorical(spelling="exact")), tmp_path / "apart", ALL)
    assert len(known(apart)) == 4
    assert Dataset(tmp_path / "apart").encoder.encode_row({"x": "007"})["ids"][0, 0] == 1  # not 7


def test_words_that_look_like_numbers_are_words(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    words = ["shoes", "red", "blue", "1", "1.0", "true", "iphone 01"]
    path.write_text("click,x\n" + "".join(f"{n % 2},{words[n % 7]}\n" for n in range(70)))
    assert known(encoded(path, schema("csv", categorical()))) == sorted(words)


def test_labels_of_several_spellings_are_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("click,x\nTrue,a\n0,b\n1.0,a\nfalse,b\n1,a\n")
    assert encoded(path, schema("csv", categorical())).array("train", "label").tolist() == [1, 0, 1, 0, 1]
    path.write_text("click,x\n" + "True,a\nFalse,b\n" * 5)
    assert infer([path]).schema.label.name == "click"


def test_vowpal_wabbit_is_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a.vw"
    path.write_text("".join(f"{n % 2} 1.0 t{n}|user u{n % 3} |tags a b{n % 2}\n" for n in range(20)))
    found = infer([path]).schema
    assert [(f.name, f.kind) for f in found.fields] == [("label", "label"), ("tags", "multi"), ("user", "multi")]
    assert known(encoded(path, found), "tags") == ["a", "b0", "b1"]


@pytest.mark.parametrize(
    "letters", [{"quote": ""}, {"quote": "ab"}, {"quote": "\n"}, {"separator": "é"}, {"quote": ","}]
)
def test_letters_that_cannot_quote_or_separate_are_refused_at_every_door(letters):
    with pytest.raises(ConfigError, match="quote|separator"):
        ReadSettings(**{"separator": ",", **letters})
