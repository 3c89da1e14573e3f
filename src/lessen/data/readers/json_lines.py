"""JSON Lines: one object a line, keys that may be absent, values of any kind, read as the text they stand for.

Numbers keep all their digits, true is `true`, an object or list in a column that nobody uses costs nothing. Quotes
end no line here: JSON writes a newline inside a string as \\n.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lessen.data.readers.boundary import foreign, reason, unprinted
from lessen.data.readers.faults import Faults, RowError
from lessen.data.readers.lines import check_utf8, text_blocks
from lessen.data.readers.piece import Piece
from lessen.data.readers.settings import ReadSettings
from lessen.errors import DataError
from lessen.log import SILENT, Log

_LIST = pl.List(pl.String)


def read_json_lines(
    path: Path,
    settings: ReadSettings,
    size: int,
    columns: Sequence[str] | None,
    lists: Mapping[str, str],
    faults: Faults | None = None,
    log: Log = SILENT,
) -> Iterator[Piece]:
    """Yield the rows of a file, columns as strings; a column of `lists` as lists of strings where cells are lists.

    A key that no line of a piece has is left out of its frame.

    Args:
        columns: the keys to read; None reads all of them, nested values as their JSON text.
        lists: those whose lists are kept apart, with the separator of cells that are text.

    Raises:
        DataError: a line is no JSON object, or a list stands in a column that is not among `lists`.
    """
    for block, start in text_blocks(path, settings, size, None, log):
        whole = block.endswith(b"\n")
        body, lines = _without_blank(block, start)
        if not body:
            continue
        frame, lines = _parsed(path, body, lines, start, columns, lists, faults, whole)
        if not len(frame):
            continue
        absent = [name for name in frame.columns if frame[name].null_count() == len(frame) and not _named(body, name)]
        piece = Piece(frame.drop(absent), path, start, lines)
        if columns is not None:
            _refuse_nested(piece, body)
        yield piece


def keys_of(path: Path, settings: ReadSettings, size: int) -> list[str]:
    """Return the keys of the first `size` bytes, in the order they appear. Raises DataError."""
    for block, line in text_blocks(path, settings, size):
        return list(_keys(path, block, line))
    raise DataError(f"{path} is empty; it needs at least one row")


def _named(block: bytes, name: str) -> bool:
    """Say whether `name` may be a key in these lines."""
    return any(json.dumps(name, ensure_ascii=plain).encode() in block for plain in (True, False))


def _without_blank(block: bytes, start: int) -> tuple[bytes, Any]:
    """Drop blank lines; returns line numbers where rows do not follow line by line."""
    body = block.rstrip()
    if b"\n\n" not in body and b"\n\r" not in body and b"\n " not in body and not body[:1].isspace():
        return body, None
    rows = [(number, row) for number, row in enumerate(body.split(b"\n"), start) if row.strip()]
    return b"\n".join(row for _, row in rows), np.asarray([number for number, _ in rows], dtype=np.int64)


def _parsed(
    path: Path,
    body: bytes,
    lines: Any,
    start: int,
    columns: Sequence[str] | None,
    lists: Mapping[str, str],
    faults: Faults | None,
    whole: bool,
) -> tuple[pl.DataFrame, Any]:
    """Parse lines; what is no JSON is named, or goes to `faults`, and NaN, which is no JSON either, becomes null."""
    names = list(columns) if columns is not None else None
    try:
        with unprinted():
            return _frame(path, body, names, lists, start), lines
    except BaseException as error:  # a line that is broken, or one that only Python's own writer makes
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        why = reason(error)
    check_utf8(path, body, start)
    body, lines = _repaired(path, body, lines, start, faults, whole)
    if not body:
        return pl.DataFrame(), lines
    with foreign(f"{path}, from line {start}: not one JSON object a line ({why})"):
        return _frame(path, body, names, lists, start), lines


def _frame(path: Path, body: bytes, names: list[str] | None, lists: Mapping[str, str], line: int) -> pl.DataFrame:
    if names is None:
        names = list(_keys(path, body, line))
    schema: dict[str, Any] = {name: _LIST if name in lists else pl.String for name in names}
    try:
        return pl.read_ndjson(io.BytesIO(body), schema=schema)
    except pl.exceptions.SchemaError:  # some cells of a list column are no lists: take both as text, then apart
        frame = pl.read_ndjson(io.BytesIO(body), schema=dict.fromkeys(schema, pl.String))
        return frame.with_columns(_apart(frame[name], lists[name]) for name in lists if name in schema)


def _apart(column: pl.Series, separator: str) -> pl.Series:
    """Return lists where some cells are lists, cells of text cut at `separator`; a column of text stays text."""
    if not column.str.starts_with("[").any():
        return column
    items: list[list[str] | None] = []
    for cell in column.to_list():
        value = _as_list(cell) if cell is not None and cell.startswith("[") else None
        items.append(cell.split(separator) if value is None and cell is not None else value)
    return pl.Series(column.name, items, dtype=_LIST)


def _as_list(cell: str) -> list[str] | None:
    try:
        found = json.loads(cell)
    except ValueError:
        return None
    return [item if isinstance(item, str) else json.dumps(item) for item in found if item is not None]


def _keys(path: Path, body: bytes, line: int) -> dict[str, None]:
    """Return the keys of all lines in order of appearance."""
    try:
        with unprinted():
            return dict.fromkeys(pl.read_ndjson(io.BytesIO(body), infer_schema_length=None).columns)
    except BaseException as error:  # kinds that no one type holds, or a line that is broken: read line by line
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
    keys: dict[str, None] = {}
    for number, row in enumerate(body.split(b"\n"), line):
        if row.strip():
            keys |= dict.fromkeys(_object(path, row, number, True))
    return keys


def _repaired(path: Path, body: bytes, lines: Any, start: int, faults: Faults | None, whole: bool) -> tuple[bytes, Any]:
    rows = body.split(b"\n")
    numbers = list(range(start, start + len(rows))) if lines is None else lines.tolist()
    good: list[bytes] = []
    kept: list[int] = []
    for place, (number, row) in enumerate(zip(numbers, rows, strict=True)):
        try:
            value = _object(path, row, number, whole or place < len(rows) - 1)
        except RowError as error:
            if faults is None:
                raise
            faults.add(error)
            continue
        good.append(json.dumps(_without_nan(value)).encode())
        kept.append(number)
    return b"\n".join(good), np.asarray(kept, dtype=np.int64)


def _object(path: Path, row: bytes, line: int, whole: bool) -> dict[str, Any]:
    """Return one line as an object. Raises RowError naming the line and the column of the text."""
    try:
        value = json.loads(row.decode("utf-8"))
    except UnicodeDecodeError:
        check_utf8(path, row, line)
        raise
    except ValueError as error:  # no JSON, or an integer of more digits than Python turns into a number
        said = f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        torn = "" if whole else "; it is the last line: the file may be cut"
        raise RowError(path, line, None, f"not one JSON object a line: {said}{torn}", "json") from error
    except RecursionError as error:
        raise RowError(path, line, None, "not one JSON object a line: nested too deep", "json") from error
    if not isinstance(value, dict):
        raise RowError(path, line, None, f"not one JSON object a line but {type(value).__name__}", "json")
    return value


def _without_nan(value: Any) -> Any:
    """Return the value with NaN as null: Python's own writer makes it, and it means that there is no number."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return None if value != value else value


def _refuse_nested(piece: Piece, body: bytes) -> None:
    """Raise for a list or object where single values belong; text that only looks like one is text."""
    for name, kind in piece.frame.schema.items():
        column = piece.frame[name]
        if kind == _LIST:
            odd = column.list.eval(pl.element().str.contains(r"^[\[{]")).list.any()
        else:
            odd = column.str.contains(r"^[\[{]")
        for row in odd.fill_null(False).arg_true().to_list():
            value = _value(piece, body, row, name)
            inner = isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value)
            if isinstance(value, dict) or inner or (isinstance(value, list) and kind != _LIST):
                held = "an object" if isinstance(value, dict) else "a list of lists or objects" if inner else "a list"
                raise piece.fault(
                    row, name, f"holds {held}; a list needs kind multi or sequence, an object kind ignore", "nested"
                )


def _value(piece: Piece, body: bytes, row: int, name: str) -> Any:
    """Return one cell as JSON has it. Rows follow the lines of `body` unless some were repaired or left out."""
    line = body.split(b"\n", row + 1)[row : row + 1] if piece.lines is None else []
    try:
        return json.loads(line[0])[name] if line else json.loads(piece.frame[name][row])
    except (ValueError, KeyError, TypeError):
        return None
