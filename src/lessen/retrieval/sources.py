"""Vectors in files that others wrote, read in batches with a name for each row.

.npy      a matrix of floats, mapped; names are row numbers
.fvecs    rows of an int32 width and as many float32, as the ANN benchmarks have them; names are row numbers
.parquet  a column of lists of floats (`vector`), and a column of names (`id`) or row numbers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from lessen.data.readers.boundary import foreign
from lessen.data.readers.parquet import names_of, read_parquet
from lessen.errors import DataError

BATCH = 1 << 14
SUFFIXES = (".npy", ".fvecs", ".parquet")


@dataclass(frozen=True)
class Batch:
    """Names of rows and their vectors, float32 [n, dim]."""

    ids: list[str]
    vectors: Tensor


def read_vectors(path: Path, column: str = "vector", names: str = "id", size: int = BATCH) -> Iterator[Batch]:
    """Yield the vectors of a file in order.

    Args:
        column, names: of Parquet: the column of vectors, and that of names (row numbers where there is no `id`).

    Raises:
        DataError: the file is absent, torn, empty, of no known kind, or its rows are of several widths.
    """
    if not path.is_file():
        raise DataError(f"no file of vectors at {path}")
    if path.suffix == ".npy":
        yield from _matrix(path, _npy(path), size)
    elif path.suffix == ".fvecs":
        yield from _matrix(path, _fvecs(path), size)
    elif path.suffix == ".parquet":
        yield from _parquet(path, column, names, size)
    else:
        raise DataError(f"{path} is no file of vectors that is known: it must end in {', '.join(SUFFIXES)}")


def read_all(path: Path, column: str = "vector", names: str = "id") -> Batch:
    """Return all vectors of a file. Raises DataError, see `read_vectors`."""
    batches = list(read_vectors(path, column, names))
    return Batch([name for one in batches for name in one.ids], torch.cat([one.vectors for one in batches]))


def _matrix(path: Path, rows: NDArray[Any], size: int) -> Iterator[Batch]:
    for first in range(0, len(rows), size):
        part = _narrowed(np.asarray(rows[first : first + size]), path, first.__add__)
        yield Batch([str(first + n) for n in range(len(part))], torch.from_numpy(part))


def _narrowed(rows: NDArray[Any], path: Path, numbered: Callable[[int], int]) -> NDArray[np.float32]:
    """Return numbers as float32, copied. Raises DataError where one has no place there."""
    with np.errstate(over="ignore"):
        found = np.array(rows, dtype=np.float32)
    if rows.dtype.itemsize > found.dtype.itemsize and rows.dtype.kind == "f":
        lost = (np.isinf(found) & np.isfinite(rows)).any(axis=1)
        if lost.any():
            row = numbered(int(lost.argmax()))
            raise DataError(f"{path}, row {row} holds a number beyond float32 (3.4e38); scale the vectors")
    return found


def _npy(path: Path) -> NDArray[Any]:
    with foreign(f"cannot read {path} as .npy"):
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.ndim != 2 or found.dtype.kind not in "fiu" or not found.size:
        raise DataError(f"{path} holds {found.dtype} of shape {list(found.shape)}; give a matrix of numbers [n, width]")
    return found


def _fvecs(path: Path) -> NDArray[Any]:
    size = path.stat().st_size
    if size < 8:
        raise DataError(f"{path} has {size} bytes and holds no vector")
    raw = np.memmap(path, dtype=np.int32, mode="r", shape=(size // 4,))
    dim = int(raw[0])
    if dim < 1 or size % (4 * dim + 4):
        raise DataError(f"{path} is torn: {size} bytes are no whole number of vectors of width {dim}")
    rows = raw.reshape(-1, dim + 1)
    if bool((rows[:, 0] != dim).any()):
        place = int((rows[:, 0] != dim).argmax())
        raise DataError(f"{path}, row {place}: width {int(rows[place, 0])}, and {dim} before it")
    found: NDArray[Any] = rows[:, 1:].view(np.float32)
    return found


def _parquet(path: Path, column: str, names: str, size: int) -> Iterator[Batch]:
    held = names_of(path)
    if column not in held:
        raise DataError(f"{path} has no column {column!r} of vectors; it holds {', '.join(held[:20])}")
    if names not in (*held, "id"):
        raise DataError(f"{path} has no column {names!r} of names; it holds {', '.join(held[:20])}")
    for piece in read_parquet(path, [column, *([names] if names in held else [])], size):
        cells = piece.frame.get_column(column)
        widths = cells.list.len() if isinstance(cells.dtype, pl.List) else None
        if widths is not None and (widths.null_count() or widths.n_unique() > 1):
            place = int((widths.fill_null(-1) != widths.fill_null(-1)[0]).arg_max() or 0)
            raise DataError(f"{path}, row {piece.line_of(place)}: its vector is missing or of another width")
        with foreign(f"{path}: the column {column!r} holds no vectors of floats"):
            inner = cells.dtype.inner if isinstance(cells.dtype, (pl.List, pl.Array)) else None
            if inner is None or not inner.is_numeric():  # words that look like numbers are words
                raise ValueError(f"its cells are {cells.dtype}")
            numbers = np.array(cells.to_list(), dtype=np.float64)
        vectors = _narrowed(numbers, path, piece.line_of)
        own: list[Any] = [str(piece.line_of(n) - 1) for n in range(len(vectors))]
        if names in held:
            with foreign(f"{path}: the column {names!r} holds no names"):
                own = piece.frame.get_column(names).cast(pl.String).to_list()
        if None in own:
            raise DataError(f"{path}, row {piece.line_of(own.index(None))}: the id is missing")
        yield Batch(own, torch.from_numpy(vectors))
