"""Numeric columns: as they are, standardised, or cut into buckets that become ids; fitted on train rows only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.logs import Piece
from lessen.data.schema import FieldSchema
from lessen.errors import DataError

Floats = NDArray[np.float64]
QUANTILE_SAMPLE = 1_000_000


def parse_numbers(piece: Piece, name: str, fill: float | None) -> Floats:
    """Return a column as float64. Raises DataError naming file, line and column for what is no finite number."""
    text = piece.frame[name]
    numbers = text.cast(pl.Float64, strict=False).to_numpy().astype(np.float64)
    bad = ~np.isfinite(numbers)
    if not bad.any():
        return numbers
    empty = (text == "").to_numpy()
    wrong = np.flatnonzero(bad & ~empty)
    if len(wrong):
        row = int(wrong[0])
        raise piece.fault(row, name, f"{text[row]!r} is not a finite number")
    if fill is None:
        raise piece.fault(int(np.flatnonzero(empty)[0]), name, "is empty; give the field a 'fill' in the schema")
    numbers[empty] = fill
    return numbers


@dataclass
class NumberFit:
    """What has to be known about a numeric field before it can be transformed; JSON values only once fitted."""

    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    """Sum of squared distances from the mean."""
    sample: list[Floats] = field(default_factory=list)
    kept: int = 0

    def add(self, numbers: Floats, keep: bool) -> None:
        """Take in the train rows of a piece (Chan's update of mean and variance); `keep` them for quantiles."""
        if not len(numbers):
            return
        mean, total = float(numbers.mean()), self.count + len(numbers)
        shift = mean - self.mean
        self.square += float(((numbers - mean) ** 2).sum()) + shift**2 * self.count * len(numbers) / total
        self.mean += shift * len(numbers) / total
        self.count = total
        if keep and self.kept < QUANTILE_SAMPLE:
            self.sample.append(numbers[: QUANTILE_SAMPLE - self.kept])
            self.kept += len(self.sample[-1])

    def result(self, spec: FieldSchema) -> dict[str, Any]:
        """Return the fitted parameters of the transform. Raises DataError if no train row was seen."""
        if not self.count:
            raise DataError(f"no train row to fit the numeric field {spec.name!r} on; check the split")
        if spec.transform == "standard":
            deviation = math.sqrt(self.square / self.count)
            return {"mean": self.mean, "deviation": deviation if deviation > 0 else 1.0}
        if spec.transform == "quantile":
            inner = np.linspace(0, 1, spec.bins + 1)[1:-1]
            return {"edges": np.unique(np.quantile(np.concatenate(self.sample), inner)).tolist()}
        return {}


def standardise(numbers: Floats, fitted: dict[str, Any]) -> Floats:
    """Return (x - mean) / deviation, or the numbers where nothing was fitted."""
    if "mean" not in fitted:
        return numbers
    return np.asarray((numbers - fitted["mean"]) / fitted["deviation"])


def buckets(numbers: Floats, spec: FieldSchema, fitted: dict[str, Any]) -> pl.Series:
    """Return the bucket of each number as a string: floor(ln(x)^2) above 2 (Criteo x4), or the quantile's number."""
    if spec.transform == "log-squared":
        large = numbers > 2
        squared = np.floor(np.log(np.where(large, numbers, 1.0)) ** 2)
        return pl.Series(np.where(large, squared, np.trunc(numbers)).astype(np.int64)).cast(pl.String)
    edges = np.asarray(fitted["edges"], dtype=np.float64)
    return pl.Series(np.searchsorted(edges, numbers, side="right").astype(np.int64)).cast(pl.String)
