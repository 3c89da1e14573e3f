"""Tables in files larger than memory: CSV, Parquet, libsvm and Vowpal Wabbit as chunks of columns of one length."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from lessen.errors import ConfigError, DataError
from lessen.selection.ranking.text import open_text, records

Format = Literal["auto", "csv", "parquet", "libsvm", "vw"]
CHUNK_ROWS = 131_072
MAX_COLUMNS = 5_000
_SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".libsvm": "libsvm", ".svm": "libsvm", ".vw": "vw",
}  # fmt: skip


@dataclass(frozen=True)
class ReadSettings:
    """How files are read."""

    format: Format = "auto"
    separator: str | None = None
    """None: the most frequent of comma, tab, semicolon and bar in the header."""
    quote: str | None = '"'
    encoding: str = "utf8"
    """`utf8`, `utf8-lossy` (bad bytes become U+FFFD) or any codec Python knows, such as `latin-1`."""
    header: bool = True
    """Whether a CSV file starts with column names; otherwise columns are called c1, c2, ..."""


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Return files in a stable order; a folder stands for the readable files in it. Raises DataError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.is_file() and _suffix(child) in _SUFFIXES)
            if not inside:
                raise DataError(f"{path} holds no file ending in {', '.join(sorted(_SUFFIXES))}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist")
    return found


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def chunks(path: Path, settings: ReadSettings) -> Iterator[pl.DataFrame]:
    """Yield the rows of one file in order. Text formats give strings; libsvm and VW columns may grow on the way.

    Raises:
        DataError: unknown format, bad header, ragged rows, bad encoding, unclosed quotes, no rows, nested types.
    """
    kind = settings.format if settings.format != "auto" else _SUFFIXES.get(_suffix(path))
    if kind is None:
        raise DataError(f"cannot tell the format of {path} from its name; give --format csv, parquet, libsvm or vw")
    reader = {"csv": _csv, "parquet": _parquet, "libsvm": _libsvm, "vw": _vw}[kind]
    empty = True
    for frame in reader(path, settings):
        if frame.width > MAX_COLUMNS:
            raise DataError(f"{path} has over {MAX_COLUMNS} columns ({frame.width}); rank a part of them at a time")
        empty = empty and frame.height == 0
        if frame.height:
            yield frame
    if empty:
        raise DataError(f"{path} holds no rows")


# -- CSV -------------------------------------------------------------------------------------------------------
def _csv(path: Path, settings: ReadSettings) -> Iterator[pl.DataFrame]:
    separator, names = csv_header(path, settings)
    schema = dict.fromkeys(names, pl.String())
    first = True
    for piece, line in records(path, settings.quote, settings.encoding):
        skip = 1 if first and settings.header else 0
        first = False
        try:
            frame = pl.read_csv(
                io.BytesIO(piece), has_header=False, skip_rows=skip, schema=schema, separator=separator,
                quote_char=settings.quote, truncate_ragged_lines=False,
            )  # fmt: skip
        except pl.exceptions.NoDataError:
            continue
        except pl.exceptions.PolarsError as error:
            reason = str(error).split("\n")[0]
            raise DataError(
                f"{path} after line {line}: {reason}; each row must have {len(names)} fields separated by {separator!r}"
            ) from error
        yield from frame.iter_slices(CHUNK_ROWS)


def csv_header(path: Path, settings: ReadSettings) -> tuple[str, list[str]]:
    """Return the separator and the column names of a CSV file. Raises DataError."""
    with open_text(path) as handle:
        codec = "utf-8" if settings.encoding.startswith("utf8") else settings.encoding
        try:
            line = handle.readline(1 << 20).decode(codec, "replace").rstrip("\r\n")
        except LookupError as error:
            raise ConfigError(f"--encoding {settings.encoding!r} is not an encoding that Python knows") from error
    if not line:
        raise DataError(f"{path} is empty or starts with an empty line")
    separator = settings.separator or max(",\t;|", key=line.count)
    raw = pl.read_csv(
        io.BytesIO(line.encode()), has_header=False, infer_schema=False, separator=separator,
        quote_char=settings.quote,
    ).row(0)  # fmt: skip
    if not settings.header:
        return separator, [f"c{number}" for number in range(1, len(raw) + 1)]
    names = [str(name or "").strip() for name in raw]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {twice[0]!r} more than once; names must be unique and not empty")
    return separator, names


# -- Parquet ---------------------------------------------------------------------------------------------------
def _parquet(path: Path, settings: ReadSettings) -> Iterator[pl.DataFrame]:  # noqa: ARG001 - one signature for all formats
    try:
        lazy = pl.scan_parquet(path)
        for name, kind in lazy.collect_schema().items():
            if kind.is_nested():
                raise DataError(f"{path}: column {name!r} is {kind}; flatten nested columns before ranking")
        for frame in lazy.collect_batches(chunk_size=CHUNK_ROWS):
            yield from frame.iter_slices(CHUNK_ROWS)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from error


# -- sparse text -----------------------------------------------------------------------------------------------
def _libsvm(path: Path, settings: ReadSettings) -> Iterator[pl.DataFrame]:
    """`label index:value index:value # comment`; an absent index is missing, columns are called by their index."""
    for piece, line in records(path, None, settings.encoding):
        rows = _lines(piece).with_columns(pl.col("text").str.split("#").list.first().str.strip_chars())
        tokens = rows.with_columns(pl.col("text").str.split(" ")).explode("text").filter(pl.col("text") != "")
        tokens = tokens.with_columns(place=pl.int_range(pl.len()).over("row"))
        label = tokens.filter(pl.col("place") == 0).select("row", label="text")
        pairs = tokens.filter(pl.col("place") > 0).select(
            "row", key=pl.col("text").str.extract(r"^(.+):", 1), value=pl.col("text").str.extract(r":([^:]*)$", 1)
        )
        if pairs["key"].null_count():
            raise DataError(f"{path} after line {line}: not libsvm; a row is 'label index:value index:value ...'")
        yield from _wide(rows, label, pairs).iter_slices(CHUNK_ROWS)


def _vw(path: Path, settings: ReadSettings) -> Iterator[pl.DataFrame]:
    """`label [importance] [tag]|namespace features |namespace features`; one column a namespace."""
    for piece, line in records(path, None, settings.encoding):
        rows = _lines(piece)
        parts = rows.with_columns(pl.col("text").str.split("|")).explode("text")
        parts = parts.with_columns(place=pl.int_range(pl.len()).over("row"))
        label = parts.filter(pl.col("place") == 0).select(
            "row", label=pl.col("text").str.strip_chars().str.split(" ").list.first()
        )
        pairs = parts.filter(pl.col("place") > 0).select(
            "row", key=pl.col("text").str.extract(r"^(\S+)", 1), value=pl.col("text").str.extract(r"^\S+\s+(.*)$", 1)
        )
        if not len(pairs) or pairs["key"].null_count():
            raise DataError(f"{path} after line {line}: not Vowpal Wabbit; a row is 'label |namespace feature ...'")
        pairs = pairs.with_columns(pl.col("value").str.strip_chars())
        yield from _wide(rows, label, pairs).iter_slices(CHUNK_ROWS)


def _lines(piece: bytes) -> pl.DataFrame:
    text = pl.DataFrame({"text": piece.decode().splitlines()}, schema={"text": pl.String})
    return text.filter(pl.col("text").str.strip_chars() != "").with_row_index("row")


def _wide(rows: pl.DataFrame, label: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    wide = pairs.pivot(on="key", index="row", values="value", aggregate_function="first", sort_columns=True)
    return rows.select("row").join(label, on="row", how="left").join(wide, on="row", how="left").drop("row")
