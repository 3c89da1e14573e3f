"""Numeric columns: as they are, standardised, or cut into buckets that become ids; fitted on train rows only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.readers import Faults, Piece, RowError
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import DataError

Floats = NDArray[np.float64]
QUANTILE_SAMPLE = 1_000_000
NULL_WORDS = ("null", "none", "na", "n/a", "nan", "nil", "-", "\\n", "<na>", "nat", "#n/a", "missing", "unknown")
"""Words that mean nothing in many exports; read as empty only where the schema lists them."""
ISO_TIME = r"^\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?$"


def parse_numbers(piece: Piece, name: str, fill: float | None) -> Floats:
    """Return a column as float64. Raises RowError naming file, line and column for what is no finite number."""
    numbers = _plain(piece, name)
    if np.isfinite(numbers).all():
        return numbers
    numbers, empty = _by_words(piece.frame[name], numbers)
    for error, _ in _number_faults(piece, name, numbers, empty, fill):
        raise error
    numbers[empty] = fill
    return numbers


def parse_labels(piece: Piece, name: str) -> NDArray[np.float32]:
    """Return a column of 0 and 1, or false and true, as float32. Raises RowError for anything else."""
    numbers = _plain(piece, name)
    if not np.isin(numbers, (0.0, 1.0)).all():
        numbers, _ = _by_words(piece.frame[name], numbers)
        for error, _ in _label_faults(piece, name, numbers):
            raise error
    return numbers.astype(np.float32)


def usable(piece: Piece, schema: Schema, faults: Faults) -> NDArray[np.bool_]:
    """Return which rows fit the schema; of each kind of fault `faults` gets the first row and how many there are."""
    good = np.ones(len(piece.frame), dtype=bool)
    for spec in schema.used:
        if spec.kind not in ("label", "numeric", "weight", "timestamp"):
            continue
        timed = with_seconds(piece, spec.name) if spec.kind == "timestamp" else piece
        numbers, empty = _by_words(timed.frame[spec.name], _plain(timed, spec.name))
        if spec.kind == "label":
            found = _label_faults(timed, spec.name, numbers)
        else:
            found = _number_faults(timed, spec.name, numbers, empty, spec.fill, spec.kind == "weight")
        for error, rows in found:
            if (rows & good).any():
                faults.add(error, int((rows & good).sum()))
                good &= ~rows
    return good


def _plain(piece: Piece, name: str) -> Floats:
    return piece.frame[name].cast(pl.Float64, strict=False).to_numpy().astype(np.float64)


def _number_faults(
    piece: Piece, name: str, numbers: Floats, empty: NDArray[np.bool_], fill: float | None, weight: bool = False
) -> Iterator[tuple[RowError, NDArray[np.bool_]]]:
    """Yield each kind of fault of a column: the error for its first row, and its rows."""
    wrong = ~np.isfinite(numbers) & ~empty
    if wrong.any():
        row = int(wrong.argmax())
        shown = str(piece.frame[name][row])
        hint = "; if it means empty, list it under 'missing' in the schema" if shown.lower() in NULL_WORDS else ""
        yield piece.fault(row, name, f"{shown!r} is not a finite number{hint}", "no number"), wrong
    if fill is None and empty.any():
        yield piece.fault(int(empty.argmax()), name, "is empty; give the field a 'fill' in the schema", "empty"), empty
    negative = numbers < 0
    if weight and negative.any():
        yield piece.fault(int(negative.argmax()), name, "is a negative weight", "negative"), negative


def _label_faults(piece: Piece, name: str, numbers: Floats) -> Iterator[tuple[RowError, NDArray[np.bool_]]]:
    wrong = ~np.isin(numbers, (0.0, 1.0))
    if wrong.any():
        row = int(wrong.argmax())
        shown = "" if piece.frame[name][row] is None else str(piece.frame[name][row])
        yield piece.fault(row, name, f"{shown!r} is no label; labels are 0 or 1", "no label"), wrong


def parse_times(piece: Piece, name: str, fill: float | None) -> Floats:
    """Return a column of times as float64: numbers as they are, ISO dates and times as seconds since 1970 in UTC.

    Raises:
        RowError: neither a finite number nor an ISO time.
    """
    return parse_numbers(with_seconds(piece, name), name, fill)


def with_seconds(piece: Piece, name: str) -> Piece:
    """Return the piece with ISO times of a column as seconds; what is none of them stays as it is."""
    column = piece.frame[name]
    if column.dtype != pl.String or not column.str.contains(ISO_TIME).any():
        return piece
    text = column.str.replace(" ", "T", literal=True)
    text = pl.select(pl.when(text.str.contains("T", literal=True)).then(text).otherwise(text + "T00:00:00")).to_series()
    zoned = text.str.contains(r"(Z|[+-]\d\d:?\d\d)$")
    local = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="us").dt.epoch("us")
    utc = text.str.to_datetime("%+", strict=False, time_unit="us", time_zone="UTC").dt.epoch("us")
    seconds = (pl.select(pl.when(zoned).then(utc).otherwise(local)).to_series() / 1e6).cast(pl.String)
    known = pl.select(pl.coalesce(pl.when(column.str.contains(ISO_TIME)).then(seconds), column)).to_series()
    return replace(piece, frame=piece.frame.with_columns(known.alias(name)))


def _by_words(column: pl.Series, numbers: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the numbers with true and false as 1 and 0, and which cells are empty."""
    if column.dtype != pl.String:
        return numbers.copy(), column.is_null().to_numpy()
    lower = column.str.to_lowercase()
    truth = np.select([(lower == "true").to_numpy(), (lower == "false").to_numpy()], [1.0, 0.0], np.nan)
    return np.where(np.isnan(truth), numbers, truth), (column == "").to_numpy()


@dataclass
class NumberFit:
    """What has to be known about a numeric field before it can be transformed; JSON values only once fitted."""

    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    """Sum of squared distances from the mean."""
    sample: list[tuple[NDArray[np.int64], Floats]] = field(default_factory=list)
    """Row numbers and values of rows kept for quantiles."""
    kept: int = 0

    def add(self, numbers: Floats, keep: bool) -> None:
        """Take in the train rows of a piece (Chan's update of mean and variance); `keep` a sample for quantiles."""
        if not len(numbers):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # `result` refuses what is not finite
            mean, total = float(numbers.mean()), self.count + len(numbers)
            shift = mean - self.mean
            self.square += float(((numbers - mean) ** 2).sum()) + shift * shift * self.count * len(numbers) / total
        self.mean += shift * len(numbers) / total
        if keep:
            self.sample.append((np.arange(self.count, total), numbers))
            self.kept += len(numbers)
            if self.kept > 2 * QUANTILE_SAMPLE:
                self._thin()
        self.count = total

    def _thin(self) -> None:
        """Keep the rows of smallest hash: an even sample of all rows so far, whatever their order and the pieces."""
        rows, values = (np.concatenate(parts) for parts in zip(*self.sample, strict=True))
        if len(rows) > QUANTILE_SAMPLE:
            chosen = np.argpartition(uniform(rows, 0), QUANTILE_SAMPLE)[:QUANTILE_SAMPLE]
            rows, values = rows[chosen], values[chosen]
        self.sample, self.kept = [(rows, values)], len(rows)

    def result(self, spec: FieldSchema) -> dict[str, Any]:
        """Return the fitted parameters of the transform.

        Raises:
            DataError: no train row was seen, or the numbers are too large for a variance.
        """
        if not self.count:
            raise DataError(f"no train row to fit the numeric field {spec.name!r} on; check the split")
        if spec.transform == "standard":
            if not math.isfinite(self.square):
                raise DataError(
                    f"field {spec.name!r} holds numbers too large to standardise (their squares overflow); "
                    "mend these rows, or give the field the transform quantile"
                )
            deviation = math.sqrt(self.square / self.count)
            return {"mean": self.mean, "deviation": deviation if deviation > 0 else 1.0}
        if spec.transform == "quantile":
            inner = np.linspace(0, 1, spec.bins + 1)[1:-1]
            self._thin()
            return {"edges": np.unique(np.quantile(self.sample[0][1], inner)).tolist()}
        return {}


def uniform(rows: NDArray[np.int64], seed: int) -> Floats:
    """Return a number in [0, 1) for each row number, by the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        x = rows.astype(np.uint64) + np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)


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
