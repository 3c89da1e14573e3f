"""The label as class codes: text values in order of appearance, or a number cut at given edges."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.errors import DataError, nearest
from lessen.selection.ranking.tally import MAX_CLASSES, NO_CLASS


@dataclass
class Label:
    """Codes the label of each chunk. `name` None means that there is none: quality and redundancy only."""

    name: str | None
    missing: tuple[str, ...]
    edges: tuple[float, ...] | None = None
    """Inner edges for a numeric label; None takes each distinct value as a class."""
    names: list[str] = field(default_factory=list)

    def codes(self, frame: pl.DataFrame) -> NDArray[np.uint8]:
        """Return one code a row, `NO_CLASS` where the label is missing.

        Raises:
            DataError: no such column, not a number although edges are given, or over 250 distinct values.
        """
        if self.name is None:
            return np.full(frame.height, NO_CLASS, dtype=np.uint8)
        if self.name not in frame.columns:
            raise DataError(f"no column is called {self.name!r} (the label); {nearest(self.name, frame.columns)}")
        column = frame[self.name]
        return self._numbers(column) if self.edges is not None else self._texts(column)

    def _texts(self, column: pl.Series) -> NDArray[np.uint8]:
        text = column.cast(pl.String)
        known = dict(zip(self.names, range(len(self.names)), strict=True))
        for value in sorted(set(text.drop_nulls().unique().to_list()) - set(self.missing) - set(known)):
            known[value] = len(self.names)
            self.names.append(value)
            if len(self.names) > MAX_CLASSES:
                raise DataError(
                    f"the label {self.name!r} has over {MAX_CLASSES} distinct values; if it is a number cut it into "
                    "classes with --label-bins 10, else choose another label"
                )
        if not known:
            return np.full(len(text), NO_CLASS, dtype=np.uint8)
        codes = text.replace_strict(list(known), list(known.values()), default=NO_CLASS, return_dtype=pl.UInt8)
        return np.asarray(codes.fill_null(NO_CLASS).to_numpy())

    def _numbers(self, column: pl.Series) -> NDArray[np.uint8]:
        edges = np.asarray(self.edges)
        values = column.cast(pl.Float64, strict=False).to_numpy()
        self.names = [f"bin {number}" for number in range(len(edges) + 1)]
        codes = np.searchsorted(edges, np.nan_to_num(values), side="right").astype(np.uint8)
        codes[np.isnan(values)] = NO_CLASS
        return np.asarray(codes, dtype=np.uint8)
