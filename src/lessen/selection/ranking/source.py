"""Tables as chunks of columns of one length, in which every value has one text, whatever the type of its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from lessen.data.readers import ReadSettings, as_text, read_pieces
from lessen.errors import DataError
from lessen.log import SILENT, Log

BLOCK = 16 << 20
CHUNK_ROWS = 131_072
MAX_COLUMNS = 5_000


def chunks(path: Path, settings: ReadSettings, log: Log = SILENT) -> Iterator[pl.DataFrame]:
    """Yield the rows of one file in order, with the types it has; columns of some formats may grow on the way.

    Raises:
        DataError: unknown format, bad header, ragged rows, bad encoding, unclosed quotes, no rows, too many columns.
    """
    for piece in read_pieces(path, settings, size=BLOCK, log=log):
        if piece.frame.width > MAX_COLUMNS:
            raise DataError(
                f"{path} has over {MAX_COLUMNS} columns ({piece.frame.width}); rank a part of them at a time"
            )
        yield from piece.frame.iter_slices(CHUNK_ROWS)


def texts(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return every column as strings: canonical text of numbers and times, JSON of lists and objects, null for missing.

    Raises:
        DataError: a column holds bytes that are no text.
    """
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    if nested:
        frame = frame.with_columns(
            pl.when(pl.col(name).is_not_null()).then(pl.struct(name).struct.json_encode()).alias(name)
            for name in nested
        )
    return as_text(frame, where)
