"""Consecutive rows of one file, and the error that names one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.readers.faults import RowError


@dataclass(frozen=True)
class Piece:
    """Rows as columns; `line` is the line number (Parquet: row number) of the first."""

    frame: pl.DataFrame
    path: Path
    line: int
    lines: NDArray[np.int64] | None = None
    """Line number of every row, where rows do not follow line by line."""

    def line_of(self, row: int) -> int:
        """Return the line number of a row of the frame."""
        return self.line + row if self.lines is None else int(self.lines[row])

    def fault(self, row: int, column: str, what: str, kind: str = "") -> RowError:
        """Return the error for a value: file, line, column, what is wrong."""
        return RowError(self.path, self.line_of(row), column, what, kind or what)

    def select(self, keep: NDArray[np.bool_]) -> Piece:
        """Return the rows that `keep` marks."""
        lines = np.arange(self.line, self.line + len(keep)) if self.lines is None else self.lines
        return replace(self, frame=self.frame.filter(pl.Series(keep)), lines=lines[keep])

    def slices(self, rows: int) -> list[Piece]:
        """Return the piece cut into pieces of at most `rows` rows."""
        if len(self.frame) <= rows:
            return [self]
        starts = range(0, len(self.frame), rows)
        return [
            replace(
                self,
                frame=self.frame.slice(start, rows),
                line=self.line_of(start),
                lines=None if self.lines is None else self.lines[start : start + rows],
            )
            for start in starts
        ]
