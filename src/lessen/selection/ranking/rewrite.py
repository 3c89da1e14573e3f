"""The data itself, changed: dead columns dropped, useful crosses added, written as parts in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from lessen.data.readers import ReadSettings
from lessen.errors import DataError
from lessen.log import SILENT, Log
from lessen.selection.ranking.source import chunks, texts

SEPARATOR = "\x1f"
_ESCAPE = "\x1e"


def cross_column(first: str, second: str) -> pl.Expr:
    """Return the cross as text: both values with a separator between that neither can contain.

    'a' with 'bc' and 'ab' with 'c' differ; a missing value is its own value, unlike the empty string.
    """
    return pl.concat_str([_escaped(first), _escaped(second)], separator=SEPARATOR).alias(f"{first}*{second}")


def _escaped(name: str) -> pl.Expr:
    text = pl.col(name).cast(pl.String)
    for mark in (_ESCAPE, SEPARATOR):
        text = text.str.replace_all(mark, _ESCAPE + chr(ord(mark) + 0x20), literal=True)
    return text.fill_null(_ESCAPE + "0")


def rewrite(
    files: Sequence[Path],
    drop: Sequence[str],
    crosses: Sequence[tuple[str, str]],
    folder: Path,
    read: ReadSettings,
    to: Literal["parquet", "csv"] = "parquet",
    log: Log = SILENT,
) -> int:
    """Write the files again, in row order, as `part-00000` and so on inside the existing `folder`; return rows.

    Raises:
        DataError: a file lacks a crossed column, or a cross would take the name of a column.
    """
    rows = part = 0
    for done, path in enumerate(files):
        log.progress("writing", done, len(files))
        for frame in chunks(path, read):
            for first, second in crosses:
                for name in (first, second):
                    if name not in frame.columns:
                        raise DataError(f"{path} lacks the column {name!r} that a cross needs")
                if f"{first}*{second}" in frame.columns:
                    raise DataError(f"{path} already has a column {first}*{second}; rename it")
            made = texts(frame.select({name for pair in crosses for name in pair}), str(path))
            changed = frame.with_columns(made.select([cross_column(*pair) for pair in crosses]).get_columns())
            changed = changed.drop(drop, strict=False)
            target = folder / f"part-{part:05d}.{to}"
            if to == "parquet":
                changed.write_parquet(target)
            else:
                changed.write_csv(target)
            rows, part = rows + len(frame), part + 1
    log.progress("writing", len(files), len(files))
    return rows
