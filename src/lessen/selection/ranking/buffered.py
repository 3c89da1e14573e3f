"""OutRank's own protocol: consecutive buffers in file order, the shifted score in each, the median over buffers.

It is for comparison with OutRank only. It inherits the traps that `rank` avoids: rows sorted by label hide every signal
inside a buffer, and a value can be judged only by the rows of one buffer. outrank 0.97.5 passes the label where its
estimator expects the feature, so rows are shifted by the counts of the label; so does this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from lessen.data.readers import ReadSettings, find_files
from lessen.errors import DataError
from lessen.selection.ranking.information import ShiftedColumn
from lessen.selection.ranking.source import chunks, texts

SMALLEST_LAST = 1024
"""A last, shorter buffer counts only with more rows than this, unless it is the only one."""


def buffered_scores(
    paths: Sequence[Path | str], label: str, buffer: int = 16_384, read: ReadSettings | None = None
) -> dict[str, float]:
    """Return the median shifted score of every column about `label`, the label included (its entropy).

    Raises:
        DataError: the label is not a column.
    """
    scores: dict[str, list[float]] = {}
    for frame in _buffers(find_files(paths), buffer, read or ReadSettings()):
        if label not in frame.columns:
            raise DataError(f"no column is called {label!r} (the label)")
        target = ShiftedColumn(frame[label].hash(seed=0).to_numpy())
        for name in frame.columns:
            column = ShiftedColumn(frame[name].hash(seed=0).to_numpy())
            scores.setdefault(name, []).append(target.entropy if name == label else target.score(column))
    return {name: float(np.median(values)) for name, values in scores.items()}


def _buffers(files: Sequence[Path], size: int, read: ReadSettings) -> Iterator[pl.DataFrame]:
    held: list[pl.DataFrame] = []
    rows, given = 0, False
    for path in files:
        for frame in chunks(path, read):
            held.append(texts(frame, str(path)))
            rows += len(frame)
            while rows >= size:
                joined = pl.concat(held, how="diagonal")
                yield joined.head(size)
                given, held, rows = True, [joined.slice(size)], rows - size
    if rows and (not given or rows > SMALLEST_LAST):
        yield pl.concat(held, how="diagonal")
