"""CSV and TSV: a header, then rows of as many cells; a short, long or broken row is named, never padded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.readers.boundary import reason, unprinted
from lessen.data.readers.faults import Faults, RowError
from lessen.data.readers.lines import check_utf8, stray_quote, text_blocks
from lessen.data.readers.piece import Piece
from lessen.data.readers.settings import ReadSettings
from lessen.errors import DataError
from lessen.log import SILENT, Log

HEADER_BYTES = 1 << 20
_SEPARATORS = ",\t;|"


def read_delimited(
    path: Path, settings: ReadSettings, size: int, faults: Faults | None = None, log: Log = SILENT
) -> Iterator[Piece]:
    """Yield the rows of a CSV or TSV file as strings, empty cells as null.

    Raises:
        DataError: no header, names twice, bad bytes, a quote that never closes; ragged rows unless `faults` takes them.
    """
    separator, names = None, settings.names
    for block, start in text_blocks(path, settings, size, settings.quote, log):
        text, line = block, start
        if separator is None:
            head = text[: _record_end(text, settings.quote)]
            _check_line_ends(path, head)
            separator, cells = _header(path, head, settings)
            if settings.header:
                names, text, line = _checked(path, cells), text[len(head) :], line + head.count(b"\n")
            elif names is None:
                names = tuple(f"c{number}" for number in range(1, len(cells) + 1))
        assert names is not None
        piece = _rows(path, text, separator, names, line, settings.quote, faults)
        if piece is not None:
            yield piece


def header_of(path: Path, settings: ReadSettings) -> tuple[str, tuple[str, ...]]:
    """Return the separator and the column names of a file. Raises DataError."""
    for block, _ in text_blocks(path, settings, HEADER_BYTES, settings.quote):
        head = block[: _record_end(block, settings.quote)]
        _check_line_ends(path, head)
        separator, cells = _header(path, head, settings)
        if settings.header:
            return separator, _checked(path, cells)
        return separator, settings.names or tuple(f"c{number}" for number in range(1, len(cells) + 1))
    raise DataError(f"{path} is empty; it needs at least one row")


def _record_end(block: bytes, quote: str | None) -> int:
    """Return the length of the first record, its newline included."""
    mark, end = quote.encode() if quote else b"", -1
    while True:
        end = block.find(b"\n", end + 1)
        if end < 0:
            return len(block)
        if not mark or block.count(mark, 0, end) % 2 == 0:
            return end + 1


def _check_line_ends(path: Path, head: bytes) -> None:
    if head.count(b"\r") > 1 and not head.endswith(b"\r\n"):
        raise DataError(f"{path} ends its lines with carriage returns alone; convert them to line feeds first")


def _header(path: Path, head: bytes, settings: ReadSettings) -> tuple[str, list[str]]:
    """Return the separator and the cells of the first record, blanks around them left out."""
    line = head.rstrip(b"\r\n")
    if not line.strip():
        raise DataError(f"{path} is empty or starts with an empty line; it needs a header or a row")
    if len(line) > HEADER_BYTES:
        raise DataError(f"{path}: its first line is longer than {HEADER_BYTES:,} bytes; is it a table?")
    separator = settings.separator or max(_SEPARATORS, key=lambda letter: line.count(letter.encode()))
    if settings.format == "tsv":
        separator = "\t"
    frame = _parse(path, line, separator, None, 1, settings.quote)
    if len(frame) != 1:
        raise DataError(f"{path}, line 1: cannot tell the column names apart; repair the quotes of the header")
    # tables written with their row numbers have no name over them; every door calls that column the same
    return separator, [str(name or "").strip() or f"column_{at}" for at, name in enumerate(frame.row(0))]


def _checked(path: Path, names: list[str]) -> tuple[str, ...]:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{path}: the header names {twice[0]!r} more than once; names must be unique")
    return tuple(names)


def _rows(
    path: Path,
    block: bytes,
    separator: str,
    names: tuple[str, ...],
    line: int,
    quote: str | None,
    faults: Faults | None,
) -> Piece | None:
    """Parse whole records; rows of a wrong number of cells are an error, or go to `faults`."""
    block = block.rstrip(b"\r\n")
    if not block:
        return None
    frame, lines = _parse_whole(path, block, separator, names, line, quote), None
    if frame is None or not _even(frame, block, separator, names, quote):
        kept, lines = _without_ragged(path, block, separator, len(names), line, quote, faults)
        if not kept:
            return None
        if frame is None or kept is not block:
            frame, block = _parse(path, kept, separator, names, line, quote), kept
    if lines is not None and len(lines) != len(frame):
        raise _misread(path, block, separator, line, quote, f"{len(frame)} rows where {len(lines)} end")
    return Piece(frame, path, line, lines)


def _parse_whole(
    path: Path, block: bytes, separator: str, names: tuple[str, ...], line: int, quote: str | None
) -> pl.DataFrame | None:
    """Return the parsed block, None where rows that are too long, or worse, keep it from being one."""
    try:
        return _parse(path, block, separator, names, line, quote)
    except DataError:
        return None


def _even(frame: pl.DataFrame, block: bytes, separator: str, names: tuple[str, ...], quote: str | None) -> bool:
    """Return whether it is plain that no row is ragged, without looking at every cell's separator.

    A row that is too long is an error of the parser, but for an empty last cell of the last row; one that is too short
    ends in a null; a blank line may be left out.
    """
    quoted = quote is not None and quote.encode() in block
    whole = frame.width == len(names) and len(frame) == block.count(b"\n") + 1
    last = block.count(separator.encode(), block.rfind(b"\n") + 1) == len(names) - 1
    return not quoted and whole and last and frame.to_series(-1).null_count() == 0


def _parse(
    path: Path, block: bytes, separator: str, names: tuple[str, ...] | None, line: int, quote: str | None
) -> pl.DataFrame:
    try:
        with unprinted():
            return pl.read_csv(
                block, separator=separator, has_header=False, new_columns=names, infer_schema=False, quote_char=quote
            )
    except pl.exceptions.PolarsError as error:
        check_utf8(path, block, line)
        raise _misread(path, block, separator, line, quote, reason(error)) from error
    except BaseException as error:  # a panic is no Exception; what it says is no use to anyone
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise _misread(path, block, separator, line, quote, reason(error)) from error


def _misread(path: Path, block: bytes, separator: str, line: int, quote: str | None, why: str) -> DataError:
    if quote and quote.encode() in block:
        where = line + block.count(b"\n", 0, stray_quote(block, quote))
        return DataError(
            f"{path}, line {where}: a quote inside a cell or one that never closes ({why}); "
            "repair the line, or read quotes as plain characters with --quote none (quote: none in a schema)"
        )
    return DataError(f"{path}, from line {line}: not a table separated by {separator!r}: {why}")


# -- ragged rows ----------------------------------------------------------------------------------------------------
def _without_ragged(
    path: Path, block: bytes, separator: str, columns: int, line: int, quote: str | None, faults: Faults | None
) -> tuple[bytes, NDArray[np.int64] | None]:
    """Return the block without ragged records, and line numbers if rows and lines do not go together.

    Separators and newlines inside quotes belong to a cell; a doubled quote opens and closes at once.
    """
    letters = np.frombuffer(block + b"\n", dtype=np.uint8)
    newline, cut = letters == ord("\n"), letters == ord(separator)
    ends = newline
    quoted = quote is not None and quote.encode() in block
    if quoted and quote is not None:
        outside = np.cumsum(letters == ord(quote), dtype=np.uint8) % 2 == 0  # the sum may wrap: its parity does not
        ends, cut = newline & outside, cut & outside
    last = np.flatnonzero(ends)
    cells = np.diff(np.searchsorted(np.flatnonzero(cut), last), prepend=0) + 1
    bad = np.flatnonzero(cells != columns)
    lines: NDArray[np.int64] | None = None
    if quoted or len(bad):
        before = np.asarray(np.searchsorted(np.flatnonzero(newline), np.r_[-1, last[:-1]], side="right"))
        if len(bad) or int(before[-1]) != len(last) - 1:
            lines = np.asarray(before, dtype=np.int64) + line
    if not len(bad) or lines is None:
        return block, lines
    error = _ragged(path, block, int(lines[bad[0]]), int(cells[bad[0]]), columns, separator, quote)
    if faults is None:
        raise error
    for row in bad.tolist():
        faults.add(_ragged(path, b"", int(lines[row]), int(cells[row]), columns, separator, quote))
    starts = np.r_[0, last[:-1] + 1]
    good = np.flatnonzero(cells == columns).tolist()
    kept = b"\n".join(block[starts[row] : last[row]] for row in good)
    return kept, lines[good]


def _ragged(
    path: Path, block: bytes, line: int, found: int, columns: int, separator: str, quote: str | None
) -> RowError:
    hint = ""
    if quote and quote.encode() in block:
        hint = "; quotes stand in this part of the file: if they are plain characters, read them with --quote none"
    return RowError(
        path,
        line,
        None,
        f"{found} cells where {columns} are expected; each row must have {columns} fields separated "
        f"by {separator!r}{hint}",
        "cells",
    )
