"""Reading: quotes, encodings, formats, chunk borders; every damage is one line that names file and line."""

from __future__ import annotations

import gzip

import polars as pl
import pytest

from lessen.data.readers import ReadSettings, find_files
from lessen.errors import DataError
from lessen.selection.ranking import source
from lessen.selection.ranking.source import chunks


def read(path, **options):
    return pl.concat(list(chunks(path, ReadSettings(**options))), how="diagonal")


def test_quotes_hold_separators_newlines_and_quotes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('label,text\n1,"a, b"\n0,"two\nlines"\n1,"say ""hi"""\n')
    assert read(path)["text"].to_list() == ["a, b", "two\nlines", 'say "hi"']


@pytest.mark.parametrize("block", [7, 16, 64])
def test_chunk_borders_inside_quotes_change_nothing(tmp_path, monkeypatch, block):
    rows = [(str(n % 2), f'line {n}\nwith "quotes", commas') for n in range(50)]
    path = tmp_path / "a.csv"
    pl.DataFrame(rows, schema=["label", "text"], orient="row").write_csv(path)
    monkeypatch.setattr(source, "BLOCK", block)
    assert read(path).rows() == rows


def test_an_unterminated_quote_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('label,text\n1,fine\n0,"never closed\n1,x\n')
    with pytest.raises(DataError, match=r"a quote never closes .*line 3.*--quote none"):
        read(path)
    assert read(path, quote=None).height == 3


def test_mixed_encodings_are_named_and_can_be_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("label,text\n1,größe\n".encode() + "0,größe\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"line 3: byte 0xf6 is not UTF-8.*--encoding"):
        read(path)
    assert read(path, encoding="utf8-lossy")["text"][0] == "größe"
    assert read(path, encoding="latin-1")["text"][1] == "größe"
    (tmp_path / "b.csv").write_bytes("label,x\n1,2\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty"),
        ("a,a\n1,2\n", "more than once"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n1,2,3\n", "must have 2 fields"),
    ],
)
def test_damaged_csv(tmp_path, content, says):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=says):
        read(path)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_files([tmp_path / "no.csv"])
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(DataError, match="--format"):
        read(tmp_path / "a.xyz")
    with pytest.raises(DataError, match="Parquet"):
        read(tmp_path / "a.xyz", format="parquet")
    with pytest.raises(DataError, match="holds no file"):
        find_files([tmp_path])


def test_truncated_gzip(tmp_path):
    path = tmp_path / "a.csv.gz"
    whole = gzip.compress(b"label,x\n" + b"1,2\n0,3\n" * 20_000)
    path.write_bytes(whole)
    assert read(path).height == 40_000
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        read(path)


def test_parquet_tab_and_headerless(tmp_path):
    frame = pl.DataFrame({"label": [0, 1], "x": ["a", None]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").equals(frame)
    pl.DataFrame({"x": [[1, 2]]}).write_parquet(tmp_path / "b.parquet")
    assert source.texts(read(tmp_path / "b.parquet"), "b")["x"].to_list() == ['{"x":[1,2]}']
    (tmp_path / "a.tsv").write_text("label\tx\n1\ta,b\n")
    assert read(tmp_path / "a.tsv")["x"].to_list() == ["a,b"]
    (tmp_path / "h.csv").write_text("1,a\n0,b\n")
    assert read(tmp_path / "h.csv", header=False).columns == ["c1", "c2"]


def test_libsvm(tmp_path):
    path = tmp_path / "a.svm"
    path.write_text("1 3:0.5 10:2 # remark\n-1 3:0.25\n\n1\n")
    frame = read(path)
    assert frame["label"].to_list() == ["1", "-1", "1"]
    assert frame["3"].to_list() == ["0.5", "0.25", None]
    assert frame["10"].to_list() == ["2", None, None]
    path.write_text("1 3:1\n0 nonsense\n")
    with pytest.raises(DataError, match="not libsvm"):
        read(path)


def test_vowpal_wabbit(tmp_path):
    path = tmp_path / "a.vw"
    path.write_text("1 1.0 tag|a x y:2 |b z\n-1 |b w\n")
    frame = read(path)
    assert frame["label"].to_list() == ["1", "-1"]
    assert frame["a"].to_list() == ["x y:2", None]
    assert frame["b"].to_list() == ["z", "w"]
