from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from lessen.data.encode import SplitRule, encode_logs
from lessen.data.folder import Dataset
from lessen.data.infer import infer_schema
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import ConfigError, DataError, OutputError
from lessen.files import TEMPORARY, dump_json
from small_log import FIELDS, SCHEMA, rows, write_csv


def raised(match: str, *args: object, **options: object) -> None:
    with pytest.raises(DataError, match=match) as caught:
        encode_logs(*args, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    out = args[2]
    assert not Path(str(out)).exists()
    assert not list(Path(str(out)).parent.glob(f"{TEMPORARY}*"))


# -- what comes out -------------------------------------------------------------------------------------------------
def test_ids_equal_a_plain_dictionary(log: Path, tmp_path: Path) -> None:
    data = encode_logs([str(log)], SCHEMA, tmp_path / "out", SplitRule(by="time", fractions=(0.5, 0.25, 0.25)))
    table = rows()
    assert data.rows == {"train": 200, "validation": 100, "test": 100}
    start = {segment.name: segment.start for segment in data.layout.segments}
    for split, part in (("train", table[:200]), ("validation", table[200:300]), ("test", table[300:])):
        ids = data.array(split, "ids")
        for name, field in (("user", 0), ("item", 1)):
            seen = [row[name] for row in table[:200]]
            if name == "item":  # the kept part of a sequence is counted with it
                seen += [token for row in table[:200] for token in tokens(row)]
            known = count(seen, 2 if name == "user" else 1)
            expected = [start[name] + (1 + known.index(row[name]) if row[name] in known else 0) for row in part]
            assert ids[:, field].tolist() == expected
        known = count([t for row in table[:200] for t in [row["item"], *tokens(row)]], 1)
        last = [tokens(row) for row in part]
        assert ids[:, 3:6].tolist() == [
            [start["item"] + 1 + known.index(t) for t in cell] + [0] * (3 - len(cell)) for cell in last
        ]
        assert data.array(split, "label").tolist() == [float(row["click"]) for row in part]
        assert data.array(split, "timestamp").tolist() == [float(row["time"]) for row in part]
    price = np.array([float(row["price"] or 0) for row in table])
    expected = (price[300:] - price[:200].mean()) / price[:200].std()
    assert data.array("test", "numeric")[:, 0] == pytest.approx(expected, abs=1e-5)
    group = data.array("train", "group")
    assert len(np.unique(group)) == len({row["query"] for row in table[:200]})


def tokens(row: dict[str, str]) -> list[str]:
    return [token for token in row["recent"].split(";") if token][-3:]


def count(values: list[str], minimum: int) -> list[str]:
    frequency = {value: values.count(value) for value in set(values)}
    return sorted((v for v in frequency if frequency[v] >= minimum), key=lambda v: (-frequency[v], v))


def test_item_vocabulary_counts_the_sequence_too(log: Path, tmp_path: Path) -> None:
    data = encode_logs([str(log)], SCHEMA, tmp_path / "out")
    assert data.layout.field("recent").segment == "item"
    assert data.encoder.vocabularies["item"].rows == 21


def test_log_squared_buckets_are_those_of_criteo_x4(tmp_path: Path) -> None:
    table = [{"y": str(n % 2), "a": "x", "v": v} for n, v in enumerate(["0", "1", "2", "3", "100", "-5", ""])]
    fields = (
        FieldSchema(name="y", kind="label"),
        FieldSchema(name="a", kind="categorical"),
        FieldSchema(name="v", kind="numeric", transform="log-squared", fill=0),
    )
    path = write_csv(tmp_path / "a.csv", table)
    data = encode_logs([str(path)], Schema(fields=fields), tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)))
    assert sorted(data.encoder.vocabularies["v"].values.to_list()) == sorted(["0", "1", "2", "21", "-5"])


def test_quantile_buckets_hold_equal_shares(tmp_path: Path) -> None:
    values = np.random.default_rng(0).lognormal(size=4000)
    table = [{"y": str(n % 2), "v": f"{v:.6f}"} for n, v in enumerate(values)]
    fields = (FieldSchema(name="y", kind="label"), FieldSchema(name="v", kind="numeric", transform="quantile", bins=8))
    path = write_csv(tmp_path / "a.csv", table)
    data = encode_logs([str(path)], Schema(fields=fields), tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)))
    counts = np.bincount(data.array("train", "ids")[:, 0])
    assert counts[counts > 0].tolist() == [500] * 8


def test_numbers_too_large_are_one_line(tmp_path: Path) -> None:
    table = [{"click": str(n % 2), "x": "1e200" if n == 250 else str(n), "u": f"u{n % 3}"} for n in range(300)]
    path = write_csv(tmp_path / "a.csv", table)
    label, user = FieldSchema(name="click", kind="label"), FieldSchema(name="u", kind="categorical")
    rule, options = SplitRule(fractions=(1.0, 0.0, 0.0)), {"piece_bytes": 500}
    large = Schema(fields=(label, user, FieldSchema(name="x", kind="numeric", transform="standard")))
    raised("field 'x' holds numbers too large to standardise", [str(path)], large, tmp_path / "out", rule, **options)
    plain = Schema(fields=(label, user, FieldSchema(name="x", kind="numeric")))
    raised("a.csv, line 252, column 'x': is too large", [str(path)], plain, tmp_path / "out", rule, **options)


def test_hashed_ids_stay_in_their_rows_and_need_no_vocabulary(log: Path, tmp_path: Path) -> None:
    fields = (FIELDS[0], FieldSchema(name="user", kind="categorical", buckets=16))
    data = encode_logs([str(log)], Schema(fields=fields), tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)))
    ids = data.array("train", "ids")
    assert data.layout.rows == 1 + 17
    assert 2 <= ids.min() <= ids.max() <= 17
    by_user = {row["user"]: set() for row in rows()}
    for row, value in zip(rows(), ids[:, 0], strict=True):
        by_user[row["user"]].add(int(value))
    assert all(len(found) == 1 for found in by_user.values())


def same(left: Dataset, right: Dataset) -> bool:
    return all(
        np.array_equal(left.array(split, name), right.array(split, name))
        for split in ("train", "validation", "test")
        for name in ("ids", "label", "numeric", "timestamp", "group")
    )


def test_every_format_gives_the_same_arrays(log: Path, tmp_path: Path) -> None:
    table = rows()
    expected = encode_logs([str(log)], SCHEMA, tmp_path / "expected")
    zipped = tmp_path / "log.csv.gz"
    zipped.write_bytes(gzip.compress(log.read_bytes()))
    lines = tmp_path / "log.jsonl"
    cells = [{**row, "recent": [t for t in row["recent"].split(";") if t]} for row in table]
    lines.write_text("\n".join(json.dumps(row) for row in cells))
    parquet = tmp_path / "log.parquet"
    pl.DataFrame(cells, schema_overrides={"recent": pl.List(pl.String)}).write_parquet(parquet)
    quoted = tmp_path / "quoted.csv"
    pl.DataFrame(table).write_csv(quoted, quote_style="always")
    others = {
        "csv.gz": (zipped, SCHEMA),
        "tsv": (write_csv(tmp_path / "log.tsv", table, "\t"), SCHEMA.model_copy(update={"format": "tsv"})),
        "jsonl": (lines, SCHEMA.model_copy(update={"format": "jsonl"})),
        "parquet": (parquet, SCHEMA.model_copy(update={"format": "parquet"})),
        "quoted": (quoted, SCHEMA),
    }
    for name, (path, schema) in others.items():
        if name in ("jsonl", "parquet"):
            fields = tuple(f.model_copy(update={"separator": "|"}) if f.name == "recent" else f for f in FIELDS)
            schema = schema.model_copy(update={"fields": fields})
        assert same(encode_logs([str(path)], schema, tmp_path / f"out-{name}"), expected), name


def test_zstandard(log: Path, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "log.csv.zst"
    path.write_bytes(zstandard.compress(log.read_bytes()))
    assert same(encode_logs([str(path)], SCHEMA, tmp_path / "a"), encode_logs([str(log)], SCHEMA, tmp_path / "b"))


def test_size_of_the_pieces_changes_nothing(log: Path, tmp_path: Path) -> None:
    whole = encode_logs([str(log)], SCHEMA, tmp_path / "a")
    assert same(encode_logs([str(log)], SCHEMA, tmp_path / "b", piece_bytes=700), whole)
    assert sum(whole.rows.values()) == 400
    assert abs(whole.rows["train"] - 320) < 30


def test_globs_are_read_in_order_and_splits_may_be_given(tmp_path: Path) -> None:
    table = rows()
    for number in range(4):
        write_csv(tmp_path / f"part{number}.csv", table[100 * number : 100 * (number + 1)])
    write_csv(tmp_path / "whole.csv", table)
    parts = encode_logs([str(tmp_path / "part*.csv")], SCHEMA, tmp_path / "a")
    assert same(parts, encode_logs([str(tmp_path / "whole.csv")], SCHEMA, tmp_path / "b"))
    given = {"train": ["part0.csv", "part1.csv"], "validation": ["part2.csv"], "test": ["part3.csv"]}
    paths = {split: [str(tmp_path / name) for name in names] for split, names in given.items()}
    data = encode_logs(paths, SCHEMA, tmp_path / "c")
    assert data.rows == {"train": 200, "validation": 100, "test": 100}


def test_libsvm(tmp_path: Path) -> None:
    path = tmp_path / "frappe.libfm"
    path.write_text("1 7:1 100:1\n0 9:1 100:1\n1 7:1 101:1\n")
    schema = infer_schema(path)
    assert [(f.name, f.kind) for f in schema.fields] == [
        ("label", "label"),
        ("f0", "categorical"),
        ("f1", "categorical"),
    ]
    data = encode_logs([str(path)], schema, tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)))
    ids = data.array("train", "ids")
    assert ids[0, 0] == ids[2, 0] != ids[1, 0]
    path.write_text("1 7:1 100:1\n0 9:0.5 100:1\n")
    raised(r"line 2: '9:0.5' is not of the form index:1", [str(path)], schema, tmp_path / "bad")
    path.write_text("1 7:1 100:1\n0 9:1\n")
    raised(r"line 2: 2 items where 3 are expected", [str(path)], schema, tmp_path / "bad")


def test_columns_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "criteo.txt"
    path.write_text("1\ta\n0\tb\n1\ta\n")
    fields = (FieldSchema(name="y", kind="label"), FieldSchema(name="c", kind="categorical"))
    schema = Schema(format="tsv", header=False, fields=fields)
    data = encode_logs([str(path)], schema, tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)))
    assert data.array("train", "label").tolist() == [1.0, 0.0, 1.0]


# -- reading it back ------------------------------------------------------------------------------------------------
def test_single_rows_get_the_ids_of_the_file(log: Path, tmp_path: Path) -> None:
    data = encode_logs([str(log)], SCHEMA, tmp_path / "out", SplitRule(by="time", fractions=(0.5, 0.25, 0.25)))
    encoder = Dataset(tmp_path / "out").encoder
    for place in (0, 17, 99):
        row = rows()[300 + place]
        found = encoder.encode_row({**row, "recent": [t for t in row["recent"].split(";") if t]})
        assert np.array_equal(found["ids"][0], data.array("test", "ids")[place])
        assert np.array_equal(found["numeric"][0], data.array("test", "numeric")[place])
    without = {name: rows()[0][name] for name in ("user", "item", "price", "views", "recent")}
    assert encoder.encode_row({**without, "user": "never seen"})["ids"][0, 0] == data.layout.segments[0].start
    with pytest.raises(DataError, match="lacks the field 'item'"):
        encoder.encode_row({"user": "u1"})


def test_stream_gives_every_row_once_in_an_order_set_by_the_seed(log: Path, tmp_path: Path) -> None:
    data = encode_logs([str(log)], SCHEMA, tmp_path / "out", SplitRule(fractions=(1.0, 0.0, 0.0)))
    everything = torch.from_numpy(np.array(data.array("train", "timestamp")))
    assert len(everything) == 400
    plain = list(data.stream("train", 64))
    assert [len(label) for _, label in plain] == [64] * 6 + [16]
    assert torch.equal(torch.cat([inputs["ids"] for inputs, _ in plain]), data.columns("train").ids)
    prices = data.columns("train").numeric
    for window in (32, 100, 1 << 18):
        shuffled = [torch.cat([i["numeric"] for i, _ in data.stream("train", 64, s, window)]) for s in (1, 1, 2)]
        assert torch.equal(shuffled[0], shuffled[1])
        assert not torch.equal(shuffled[0], shuffled[2])
        assert torch.equal(shuffled[0].sort(0).values, prices.sort(0).values)  # type: ignore[union-attr]


def test_reuse_needs_the_same_sources_schema_and_rule(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = encode_logs([str(log)], SCHEMA, out)
    stamp = (out / "train" / "ids.npy").stat().st_mtime_ns
    assert encode_logs([str(log)], SCHEMA, out).fingerprint == first.fingerprint
    assert (out / "train" / "ids.npy").stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match="holds another data set"):
        encode_logs([str(log)], SCHEMA, out, SplitRule(seed=1))
    log.write_text(log.read_text().replace("i1,", "i2,", 1))
    with pytest.raises(OutputError, match="holds another data set"):
        encode_logs([str(log)], SCHEMA, out)


def test_damaged_folders_are_refused(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_logs([str(log)], SCHEMA, out)
    ids = out / "train" / "ids.npy"
    raw = ids.read_bytes()
    ids.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="truncated"):
        Dataset(out).columns("train")
    vocabulary = out / "vocabulary" / "0.parquet"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="changed or damaged"):
        Dataset(out)
    with pytest.raises(DataError, match="no data set"):
        Dataset(tmp_path)
    (out / "dataset.json").write_text(dump_json({"version": 99}))
    with pytest.raises(DataError, match="version 99"):
        Dataset(out)


# -- bad input ------------------------------------------------------------------------------------------------------
def test_ragged_rows_name_the_line(log: Path, tmp_path: Path) -> None:
    lines = log.read_text().splitlines()
    lines[41] += ",extra"
    log.write_text("\n".join(lines))
    raised(r"log.csv, line 42: 9 cells where 8 are expected", [str(log)], SCHEMA, tmp_path / "out", piece_bytes=300)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("click", "2", r"line 12, column 'click': '2' is no label; labels are 0 or 1"),
        ("click", "", r"line 12, column 'click': '' is no label"),
        ("price", "cheap", r"line 12, column 'price': 'cheap' is not a finite number"),
        ("price", "inf", r"line 12, column 'price': 'inf' is not a finite number"),
        ("time", "", r"line 12, column 'time': is empty; give the field a 'fill'"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [300, 1 << 20])
def test_bad_values_name_file_line_and_column(
    tmp_path: Path, column: str, value: str, message: str, piece_bytes: int
) -> None:
    table = rows(40)
    table[10][column] = value
    path = write_csv(tmp_path / "log.csv", table)
    raised(r"log.csv, " + message, [str(path)], SCHEMA, tmp_path / "out", piece_bytes=piece_bytes)


def test_wrong_delimiter_missing_column_and_empty_files(log: Path, tmp_path: Path) -> None:
    semicolons = SCHEMA.model_copy(update={"separator": ";"})
    raised("check the separator|cells where", [str(log)], semicolons, tmp_path / "out")
    other = tmp_path / "other.csv"
    other.write_text("click,user\n1,u1\n")
    raised(r"other.csv lacks the column 'item'; it has click, user", [str(log), str(other)], SCHEMA, tmp_path / "out")
    other.write_text("")
    raised("other.csv is empty", [str(other)], SCHEMA, tmp_path / "out")
    other.write_text(log.read_text().splitlines()[0] + "\n")
    raised("holds no row below its header", [str(other)], SCHEMA, tmp_path / "out")
    raised("no file matches", [str(tmp_path / "absent*.csv")], SCHEMA, tmp_path / "out")
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(log.read_bytes())[:-200])
    raised("truncated", [str(broken)], SCHEMA, tmp_path / "out")
    notparquet = tmp_path / "x.parquet"
    notparquet.write_bytes(b"nonsense")
    raised("as Parquet", [str(notparquet)], SCHEMA.model_copy(update={"format": "parquet"}), tmp_path / "out")
    notjson = tmp_path / "x.jsonl"
    notjson.write_text('{"a": 1}\n{broken\n')
    raised(
        "not one JSON object a line", [str(notjson)], SCHEMA.model_copy(update={"format": "jsonl"}), tmp_path / "out"
    )


def test_full_disk_leaves_nothing_behind(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lessen.data import folder

    def full(self: object, values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.ArrayWriter, "append", full)
    with pytest.raises(OutputError, match="No space left on device"):
        encode_logs([str(log)], SCHEMA, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_rules_that_do_not_fit_are_named(log: Path, tmp_path: Path) -> None:
    untimed = Schema(fields=FIELDS[:3])
    with pytest.raises(ConfigError, match="needs a field of kind timestamp"):
        encode_logs([str(log)], untimed, tmp_path / "out", SplitRule(by="time"))
    with pytest.raises(ConfigError, match="add up to 1"):
        encode_logs([str(log)], SCHEMA, tmp_path / "out", SplitRule(fractions=(0.5, 0.1, 0.1)))
    with pytest.raises(ConfigError, match="need files for train, validation, test"):
        encode_logs({"train": [str(log)]}, SCHEMA, tmp_path / "out")
