"""Reading logs in pieces: CSV, TSV, JSON lines, Parquet and libsvm, plain, gz or zst, as frames of strings.

A piece knows its file and the line it starts at, so that whatever is found wrong later can be named.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from lessen.data.schema import Schema
from lessen.errors import DataError, MissingExtraError

PIECE_BYTES = 32 << 20
PARQUET_ROWS = 200_000
LONGEST_LINE = 64 << 20


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one file, every column a string; `line` is the line number of the first row."""

    frame: pl.DataFrame
    path: Path
    line: int

    def fault(self, row: int, column: str, what: str) -> DataError:
        """Return the error for a value: file, line, column, what is wrong."""
        return DataError(f"{self.path}, line {self.line + row}, column {column!r}: {what}")


def expand(patterns: list[str] | list[Path]) -> list[Path]:
    """Return the files that names and globs stand for, sorted inside each glob. Raises DataError if one has none."""
    found: list[Path] = []
    for pattern in map(str, patterns):
        path = Path(pattern)
        if any(letter in path.name for letter in "*?["):
            matches = sorted(path.parent.glob(path.name))
        else:
            matches = [path] if path.is_file() else []
        if not matches:
            raise DataError(f"no file matches {pattern}; check the path")
        found += matches
    return found


def read_pieces(path: Path, schema: Schema, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the rows of `path`, the columns that `schema` uses, as strings.

    Raises:
        DataError: the file is empty, damaged, has ragged rows or lacks a column.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; it needs at least one row")
    rows = 0
    for piece in _pieces(path, schema, piece_bytes):
        rows += len(piece.frame)
        yield piece
    if rows == 0:
        raise DataError(f"{path} holds no row below its header")


def _pieces(path: Path, schema: Schema, piece_bytes: int) -> Iterator[Piece]:
    names = [field.name for field in schema.used]
    if schema.format == "parquet":
        yield from _parquet(path, names, schema)
        return
    line, header = 1, None
    for block in read_blocks(path, piece_bytes):
        if schema.format in ("csv", "tsv"):
            frame, header, first = _delimited(path, block, schema, header, line)
        elif schema.format == "jsonl":
            frame, first = _json_lines(path, block, line), line
        else:
            frame, first = _libsvm(path, block, line), line
        if len(frame):
            yield Piece(_chosen(frame, names, path), path, first)
        line += block.count(b"\n") + (not block.endswith(b"\n"))


def _chosen(frame: pl.DataFrame, names: list[str], path: Path) -> pl.DataFrame:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        columns = ", ".join(frame.columns[:12])
        raise DataError(
            f"{path} lacks the column {missing[0]!r}; it has {columns}: check the separator, header and schema"
        )
    return frame.select(names)


# -- bytes ----------------------------------------------------------------------------------------------------------
def read_blocks(path: Path, size: int) -> Iterator[bytes]:
    """Yield pieces of the decompressed file that end with a line; a newline inside quotes does not end one."""
    rest = b""
    try:
        with _opened(path) as handle:
            while part := handle.read(size):
                data = rest + part
                cut = _line_end(data)
                if cut == 0 and len(data) > LONGEST_LINE:
                    raise DataError(f"{path} has a line of over {LONGEST_LINE} bytes; is it a text file?")
                if cut:
                    yield data[:cut]
                rest = data[cut:]
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}; it may be truncated or not of the kind its name says") from error
    if rest:
        yield rest


def _line_end(data: bytes) -> int:
    """Return the length of the longest prefix that ends with a line outside quotes."""
    cut = data.rfind(b"\n") + 1
    while cut and data.count(b'"', 0, cut) % 2:
        cut = data.rfind(b"\n", 0, cut - 1) + 1
    return cut


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError("checkpoints", "zstandard", f"reading {path.name}") from error
        return zstandard.open(path, "rb")  # type: ignore[no-any-return]
    return path.open("rb")


# -- formats --------------------------------------------------------------------------------------------------------
def _delimited(
    path: Path, block: bytes, schema: Schema, header: list[str] | None, line: int
) -> tuple[pl.DataFrame, list[str], int]:
    """Parse a block of CSV or TSV; returns the frame, the column names and the line of its first row."""
    separator = "\t" if schema.format == "tsv" else schema.separator
    if header is None and schema.header:
        head, _, block = block.partition(b"\n")
        header, line = header_names(path, head, separator), line + 1
    names = header if header is not None else [field.name for field in schema.fields]
    block = block.rstrip(b"\r\n")
    if not block:
        return pl.DataFrame(), names, line
    _check_ragged(path, block, separator, len(names), line)
    return _parse(path, block, separator, names, line), names, line


def header_names(path: Path, line: bytes, separator: str) -> list[str]:
    """Return the cells of the first line of a file."""
    return [str(name) for name in _parse(path, line, separator, None, 1).row(0)]


def _parse(path: Path, block: bytes, separator: str, names: list[str] | None, line: int) -> pl.DataFrame:
    try:
        return pl.read_csv(
            block, separator=separator, has_header=False, new_columns=names, infer_schema=False, quote_char='"'
        ).fill_null("")
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}, from line {line}: not a table separated by {separator!r}: {reason}") from error


def _check_ragged(path: Path, block: bytes, separator: str, columns: int, line: int) -> None:
    """Raise DataError naming the first line whose number of cells is wrong.

    Separators and newlines inside quotes belong to a cell; a doubled quote opens and closes at once.
    """
    letters = np.frombuffer(block + b"\n", dtype=np.uint8)
    newline, cut = letters == ord("\n"), letters == ord(separator)
    ends = newline
    if b'"' in block:
        outside = np.cumsum(letters == ord('"'), dtype=np.uint8) % 2 == 0  # the sum may wrap: its parity does not
        ends, cut = newline & outside, cut & outside
    last = np.flatnonzero(ends)
    cells = np.diff(np.searchsorted(np.flatnonzero(cut), last), prepend=0) + 1
    bad = np.flatnonzero(cells != columns)
    if len(bad):
        row = int(bad[0])
        before = int(newline[: last[row - 1] + 1].sum()) if row else 0  # lines, not records: cells may hold newlines
        raise DataError(
            f"{path}, line {line + before}: {int(cells[row])} cells where {columns} are expected; "
            f"repair the line or check the separator {separator!r}"
        )


def _json_lines(path: Path, block: bytes, line: int) -> pl.DataFrame:
    try:
        return _as_strings(pl.read_ndjson(io.BytesIO(block), infer_schema_length=None), "|")
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}, from line {line}: not one JSON object a line: {reason}") from error


def _parquet(path: Path, names: list[str], schema: Schema) -> Iterator[Piece]:
    try:
        lazy, start = pl.scan_parquet(path), 0
        known = lazy.collect_schema().names()
        _chosen(pl.DataFrame(schema=known), names, path)
        while True:
            frame = lazy.select(names).slice(start, PARQUET_ROWS).collect()
            if not len(frame):
                return
            separators = {field.name: field.separator for field in schema.used}
            yield Piece(_as_strings(frame, separators), path, start + 1)
            start += len(frame)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from error


def _as_strings(frame: pl.DataFrame, separators: dict[str, str] | str) -> pl.DataFrame:
    """Return every column as strings; lists are joined by the separator of their field; null becomes empty."""
    columns: list[Any] = []
    for name, kind in frame.schema.items():
        column = pl.col(name)
        if isinstance(kind, pl.List):
            joint = separators if isinstance(separators, str) else separators.get(name, "|")
            column = column.cast(pl.List(pl.String)).list.join(joint)
        elif kind == pl.Boolean:
            column = column.cast(pl.Int8).cast(pl.String)
        else:
            column = column.cast(pl.String)
        columns.append(column.fill_null(""))
    return frame.select(columns)


def _libsvm(path: Path, block: bytes, line: int) -> pl.DataFrame:
    """Parse `label index:1 index:1 ...`, equally many pairs a line, into the columns label, f0, f1, ..."""
    lines = pl.Series(block.decode("utf-8", errors="replace").splitlines(), dtype=pl.String)
    cells = lines.str.strip_chars().str.split(" ")
    counts = cells.list.len()
    width = int(counts[0])
    ragged = (counts != width).arg_true()
    if len(ragged):
        raise DataError(f"{path}, line {line + int(ragged[0])}: {counts[ragged[0]]} items where {width} are expected")
    frame = pl.DataFrame({f"f{i - 1}" if i else "label": cells.list.get(i) for i in range(width)})
    for i in range(width - 1):
        pair = frame[f"f{i}"].str.split_exact(":", 1).struct
        bad = (pair.field("field_1") != "1").fill_null(True).arg_true()
        if len(bad):
            row = int(bad[0])
            raise DataError(f"{path}, line {line + row}: {frame[f'f{i}'][row]!r} is not of the form index:1")
        frame = frame.with_columns(pair.field("field_0").alias(f"f{i}"))
    return frame
