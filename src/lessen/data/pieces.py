"""The rows of a log as its schema wants them: ids as text or lists of text, numbers as numbers or text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from lessen.data.readers import Faults, Piece, as_text, columns_of, read_pieces
from lessen.data.readers.reading import PIECE_BYTES
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import DataError
from lessen.log import SILENT, Log

NUMBERS = ("label", "numeric", "weight", "timestamp")


@dataclass
class Absent:
    """Fields that whole files lack: JSON leaves out what is empty, so a file without a key may still be right."""

    files: int = 0
    lacking: dict[str, list[Path]] = field(default_factory=dict)

    def check(self, log: Log = SILENT) -> None:
        """Say which files lack which field. Raises DataError: a field is in no file at all."""
        for name, paths in self.lacking.items():
            if len(paths) == self.files:
                raise DataError(f"{paths[0]} lacks the column {name!r}, as every file does; check the schema")
            log.note(f"{paths[0]} lacks {name!r} (so do {len(paths) - 1} more files): taken as empty there")


def log_pieces(
    path: Path,
    schema: Schema,
    size: int = PIECE_BYTES,
    faults: Faults | None = None,
    absent: Absent | None = None,
    log: Log = SILENT,
) -> Iterator[Piece]:
    """Yield the rows of `path`, the columns that `schema` uses: ids as strings or lists of strings, "" where empty.

    Numbers come as float64 where the file has numbers, else as strings.

    Raises:
        DataError: the file is empty, damaged, has ragged rows, lacks a column, or holds what a field cannot take.
    """
    names = [in_file(spec, schema) for spec in schema.used]
    lists = {in_file(spec, schema): spec.separator for spec in schema.of_kind("multi", "sequence")}
    seen: set[str] = set()
    for piece in read_pieces(path, schema.reading, names, lists, size, faults, log):
        seen |= set(piece.frame.columns)
        _check_columns(path, schema, piece, seen)
        yield replace(piece, frame=_as_schema(piece, schema))
    if absent is not None:
        absent.files += 1
        for spec in schema.used:
            if in_file(spec, schema) not in seen:
                absent.lacking.setdefault(spec.name, []).append(path)


def in_file(spec: FieldSchema, schema: Schema) -> str:
    """Return how the reader calls the column of a field: headers lose the blanks around their names."""
    return spec.name.strip() if schema.header and schema.format in ("csv", "tsv") else spec.name


def _check_columns(path: Path, schema: Schema, piece: Piece, seen: set[str]) -> None:
    """Raise for a column that is not there, unless keys may be left out and the field may be empty."""
    here = piece.frame.columns
    if len(here) == len(schema.used):
        return
    for spec in schema.used:
        name = in_file(spec, schema)
        required = spec.kind == "label" or (spec.kind in NUMBERS and spec.fill is None)
        if name not in here and (schema.format not in ("jsonl", "vw") or (required and name not in seen)):
            known = ", ".join(columns_of(path, schema.reading)[1][:12])
            raise DataError(f"{path} lacks the column {name!r}; it has {known}: check the separator, header and schema")


def _as_schema(piece: Piece, schema: Schema) -> pl.DataFrame:
    frame = piece.frame
    missing = list(schema.missing)
    ids, columns, kinds = [], [], frame.schema
    for spec in schema.used:
        name = in_file(spec, schema)
        if name not in kinds:
            columns.append(pl.lit("").alias(spec.name))
            continue
        kind = kinds[name]
        _check_kind(piece, spec, kind)
        column = pl.col(name)
        if spec.kind in NUMBERS and (kind.is_float() or kind.is_integer() or kind == pl.Boolean):
            columns.append(column.cast(pl.Float64).fill_nan(None).alias(spec.name))
        elif spec.kind == "timestamp" and isinstance(kind, (pl.Datetime, pl.Date)):
            columns.append((column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6).alias(spec.name))
        else:
            ids.append(name)
            columns.append(_filled(column, kind, missing).alias(spec.name))
    return frame.with_columns(as_text(frame, str(piece.path), ids)).select(columns) if ids else frame.select(columns)


def _filled(column: pl.Expr, kind: pl.DataType, missing: list[str]) -> pl.Expr:
    if isinstance(kind, (pl.List, pl.Array)):
        return column.list.eval(pl.element().filter(~pl.element().is_in(missing))) if missing else column
    if missing:
        column = pl.when(~column.is_in(missing)).then(column)
    return column.fill_null("")


def _check_kind(piece: Piece, spec: FieldSchema, kind: pl.DataType) -> None:
    if isinstance(kind, (pl.List, pl.Array)) and spec.kind not in ("multi", "sequence"):
        raise DataError(
            f"{piece.path}, column {spec.name!r} holds lists but has kind {spec.kind}; give it kind multi or sequence"
        )
