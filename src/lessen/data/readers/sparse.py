"""libsvm and Vowpal Wabbit: rows of `key:value` items, read as columns of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from lessen.data.readers.boundary import foreign
from lessen.data.readers.faults import Faults, RowError
from lessen.data.readers.lines import check_utf8, text_blocks
from lessen.data.readers.piece import Piece
from lessen.data.readers.settings import ReadSettings
from lessen.log import SILENT, Log

LIBSVM = "not libsvm; a row is 'label index:value index:value ...'"
VW = "not Vowpal Wabbit; a row is 'label |namespace feature ...'"
Parse = Callable[[pl.DataFrame], "tuple[pl.DataFrame, pl.Series]"]
"""From numbered lines to columns, and for each line what is wrong with it, null where nothing is."""
ROW = "\0row"
"""Name of the line's number inside a piece: no key of a file can take it, keys end at a NUL or a blank."""


def read_libsvm(
    path: Path, settings: ReadSettings, size: int, faults: Faults | None = None, log: Log = SILENT
) -> Iterator[Piece]:
    """Yield rows of `label index:value ... # comment`; an absent index is null, columns are called by their index.

    Every row has as many `index:1` items with `placed`, and column f0 holds the first index, f1 the second.

    Raises:
        DataError: a line is not of that form.
    """
    parse = _by_place if settings.placed else _by_index
    yield from _pieces(path, settings, size, parse, faults, log)


def read_vw(
    path: Path, settings: ReadSettings, size: int, faults: Faults | None = None, log: Log = SILENT
) -> Iterator[Piece]:
    """Yield rows of `label [importance] [tag]|namespace features ...`, one column a namespace. Raises DataError."""
    yield from _pieces(path, settings, size, _by_namespace, faults, log)


def _pieces(
    path: Path, settings: ReadSettings, size: int, parse: Parse, faults: Faults | None, log: Log
) -> Iterator[Piece]:
    for block, start in text_blocks(path, settings, size, None, log):
        check_utf8(path, block, start)
        rows = _lines(block, start)
        if not len(rows):
            continue
        with foreign(f"{path}, from line {start}"):
            frame, wrong = parse(rows)
        bad = wrong.is_not_null()
        for row in bad.arg_true().to_list():
            error = RowError(path, int(rows["line"][row]), None, f"{wrong[row]} ({rows['text'][row][:40]!r})", "form")
            if faults is None:
                raise error
            faults.add(error)
        piece = Piece(frame, path, start, rows["line"].to_numpy())
        if bad.any():
            piece = piece.select(~bad.to_numpy())
        if len(piece.frame):
            yield piece


def _lines(block: bytes, start: int) -> pl.DataFrame:
    texts = block.decode("utf-8").split("\n")
    numbered = pl.DataFrame({"text": texts, "line": np.arange(start, start + len(texts))})
    return numbered.with_columns(pl.col("text").str.strip_chars()).filter(pl.col("text") != "").with_row_index(ROW)


def _by_index(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    clean = rows.select(ROW, pl.col("text").str.split("#").list.first().str.strip_chars())
    tokens = clean.with_columns(pl.col("text").str.split(" ")).explode("text").filter(pl.col("text") != "")
    tokens = tokens.with_columns(place=pl.int_range(pl.len()).over(ROW))
    label = tokens.filter(pl.col("place") == 0).select(ROW, label="text")
    pairs = tokens.filter(pl.col("place") > 0).select(
        ROW, key=pl.col("text").str.extract(r"^(.+):", 1), value=pl.col("text").str.extract(r":([^:]*)$", 1)
    )
    return _wide(rows, label, pairs), _wrong(rows, pairs, LIBSVM, pl.Series(dtype=pl.UInt32))


def _by_namespace(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    parts = rows.select(ROW, pl.col("text").str.split("|")).explode("text")
    parts = parts.with_columns(place=pl.int_range(pl.len()).over(ROW))
    label = parts.filter(pl.col("place") == 0).select(
        ROW, label=pl.col("text").str.strip_chars().str.split(" ").list.first()
    )
    pairs = parts.filter(pl.col("place") > 0).select(
        ROW, key=pl.col("text").str.extract(r"^(\S+)", 1), value=pl.col("text").str.extract(r"^\S+\s+(.*)$", 1)
    )
    pairs = pairs.with_columns(pl.col("value").str.strip_chars())
    without = rows.filter(~pl.col(ROW).is_in(pairs[ROW].unique().implode()))[ROW]
    return _wide(rows, label, pairs), _wrong(rows, pairs, VW, without)


def _wrong(rows: pl.DataFrame, pairs: pl.DataFrame, what: str, more: pl.Series) -> pl.Series:
    """Return what is wrong with each row: an item without a key, one that is called as the label is, or `more`."""
    bad = pl.concat([pairs.filter(pl.col("key").is_null())[ROW], more]).unique().implode()
    taken = pairs.filter(pl.col("key") == "label")[ROW].unique().implode()
    return rows.select(
        pl.when(pl.col(ROW).is_in(bad))
        .then(pl.lit(what))
        .when(pl.col(ROW).is_in(taken))
        .then(pl.lit("a column is called 'label', as the label itself is"))
    ).to_series()


def _wide(rows: pl.DataFrame, label: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    pairs = pairs.filter(pl.col("key").is_not_null() & (pl.col("key") != "label"))
    wide = pairs.pivot(on="key", index=ROW, values="value", aggregate_function="first", sort_columns=True)
    return rows.select(ROW).join(label, on=ROW, how="left").join(wide, on=ROW, how="left").drop(ROW)


def _by_place(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Read `label index:1 index:1 ...`, as many items a row as in the first, into the columns label, f0, f1, ..."""
    cells = rows["text"].str.split(" ")
    counts = cells.list.len()
    width = int(counts[0])
    found = pl.DataFrame({"count": counts})
    wrong = found.select(
        pl.when(pl.col("count") != width).then(pl.format(f"{{}} items where {width} are expected", "count"))
    ).to_series()
    frame = pl.DataFrame({"label": cells.list.get(0)})
    for place in range(width - 1):
        cell = cells.list.get(place + 1, null_on_oob=True)
        pair = cell.str.split_exact(":", 1).struct
        odd = pl.DataFrame({"cell": cell, "odd": (pair.field("field_1") != "1").fill_null(True), "wrong": wrong})
        wrong = odd.select(
            pl.when(pl.col("wrong").is_null() & pl.col("odd"))
            .then(pl.format("'{}' is not of the form index:1", "cell"))
            .otherwise(pl.col("wrong"))
        ).to_series()
        frame = frame.with_columns(pair.field("field_0").alias(f"f{place}"))
    return frame, wrong
