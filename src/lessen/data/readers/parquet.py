"""Parquet: columns with types of their own, read in bounded pieces; a torn file is named before anything is parsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from lessen.data.readers.boundary import foreign
from lessen.data.readers.opening import start_of
from lessen.data.readers.piece import Piece
from lessen.errors import DataError

MAGIC = b"PAR1"
PIECE_ROWS = 200_000
READ_BYTES = 128 << 20
"""Bytes of a file, packed as they are, that are read at once; a row of any length counts."""


def read_parquet(path: Path, columns: Sequence[str] | None, rows: int = PIECE_ROWS) -> Iterator[Piece]:
    """Yield the rows of a file with the types it has; `line` is the row number. Raises DataError."""
    check_whole(path)
    start = 1
    names = names_of(path)
    if columns is not None:
        names = [name for name in columns if name in names]
    with foreign(f"cannot read {path} as Parquet"):
        table = pl.scan_parquet(path, glob=False)
        total = table.select(pl.len()).collect().item()
    at_once = max(rows, min(PIECE_ROWS, READ_BYTES * total // path.stat().st_size))
    while True:
        # piece by piece, not `collect_batches`: no thread of polars may run on, and panic, behind the boundary
        with foreign(f"cannot read {path} as Parquet after row {start - 1:,}"):
            frame = table.select(names).slice(start - 1, at_once).collect(engine="streaming")
        if len(frame):
            yield from Piece(frame, path, start).slices(rows)
        start += len(frame)
        if len(frame) < at_once:
            return


def names_of(path: Path) -> list[str]:
    """Return the columns of a file. Raises DataError."""
    check_whole(path)
    with foreign(f"cannot read {path} as Parquet"):
        return pl.scan_parquet(path, glob=False).collect_schema().names()


def check_whole(path: Path) -> None:
    """Raise DataError unless the file starts and ends as Parquet does and its footer fits into it."""
    head = start_of(path)
    if not head:
        raise DataError(f"{path} is empty; it needs at least one row")
    if not head.startswith(MAGIC):
        raise DataError(f"cannot read {path} as Parquet: it starts with {head[:8]!r}")
    size = path.stat().st_size
    with path.open("rb") as handle:
        handle.seek(max(size - 8, 0))
        tail = handle.read(8)
    if tail[4:] != MAGIC:
        raise DataError(
            f"{path} is truncated: it ends at byte {size:,} without the footer of Parquet; copy or write it again"
        )
    if size < 12 or int.from_bytes(tail[:4], "little") > size - 12:
        raise DataError(f"{path} is damaged: its Parquet footer claims more bytes than the file has ({size:,})")
