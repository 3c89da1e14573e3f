"""The encoder: fitted on train rows once, then the same ids for files, frames and single rows.

frame of strings -> ids int32 [rows, columns] (global, into one flat table), numeric float32, label, weight, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.columns import IdField, Kind, Layout
from lessen.data.numbers import NumberFit, buckets, parse_labels, parse_numbers, parse_times, standardise
from lessen.data.readers import Piece
from lessen.data.readers.values import one_spelling
from lessen.data.rows import cells_of, piece_of
from lessen.data.schema import FieldSchema, Schema
from lessen.data.serving import Place, SingleCells
from lessen.data.vocabulary import Counter, Hashed, Vocabulary
from lessen.errors import DataError
from lessen.stored.fields import Segment

LARGEST_TABLE = 2**31 - 1
EXTRAS = ("weight", "timestamp", "group")
VERSION = 2
"""Of what a value is called: in version 1, numbers of hashed fields and of single rows had the text of their type."""


@dataclass(frozen=True)
class Encoded:
    """Rows as arrays; `extras` holds weight, timestamp (float64) and group (int32) where the schema has them."""

    ids: NDArray[np.int32]
    numeric: NDArray[np.float32]
    label: NDArray[np.float32]
    extras: dict[str, NDArray[Any]]


class Encoder:
    """Vocabularies, number transforms and layout of a schema."""

    def __init__(
        self,
        schema: Schema,
        vocabularies: dict[str, Vocabulary | Hashed],
        numbers: dict[str, dict[str, Any]],
        version: int = VERSION,
    ) -> None:
        self.schema, self.vocabularies, self.numbers, self.version = schema, vocabularies, numbers, version
        self.id_fields = [field for field in schema.fields if field.has_ids]
        self.plain = [field for field in schema.of_kind("numeric") if not field.bucketed]
        self.layout = self._layout()
        self.first_row = {segment.name: segment.start for segment in self.layout.segments}

    def _layout(self) -> Layout:
        segments: list[Segment] = []
        for name, vocabulary in self.vocabularies.items():
            start = segments[-1].start + segments[-1].rows if segments else 1
            segments.append(Segment(name, start, vocabulary.rows))
        rows = sum(segment.rows for segment in segments) + 1
        if rows > LARGEST_TABLE:
            raise DataError(f"the vocabularies need {rows} table rows, over 2^31; raise minimum_count or hash fields")
        fields: list[IdField] = []
        for spec in self.id_fields:
            start = fields[-1].start + fields[-1].width if fields else 0
            kind: Kind = spec.kind if spec.kind in ("multi", "sequence") else "categorical"
            width = 1 if kind == "categorical" else spec.length
            fields.append(IdField(spec.name, kind, start, width, spec.vocabulary or spec.name))
        return Layout(tuple(fields), tuple(segments), tuple(spec.name for spec in self.plain))

    def encode(self, piece: Piece) -> Encoded:
        """Encode a piece. Raises DataError naming file, line and column of a bad value."""
        rows = len(piece.frame)
        ids = np.zeros((rows, self.layout.width), dtype=np.int32)
        numeric = np.zeros((rows, len(self.plain)), dtype=np.float32)
        self._fill(piece, ids, numeric, frozenset())
        return Encoded(ids, numeric, parse_labels(piece, self.schema.label.name), self._extras(piece))

    def _fill(self, piece: Piece, ids: NDArray[np.int32], numeric: NDArray[np.float32], done: Set[str]) -> None:
        """Write ids [rows, columns] and numbers [rows, numbers] of a piece, but for the fields that are done."""
        for spec, field in zip(self.id_fields, self.layout.fields, strict=True):
            if spec.name in done:
                continue
            part = ids[:, field.start : field.start + field.width]
            vocabulary, first = self.vocabularies[field.segment], self.first_row[field.segment]
            if field.kind == "categorical":
                part[:, 0] = vocabulary.encode(self.values(piece, spec)) + first
            else:
                row, place, values = spread(piece.frame[spec.name], spec)
                part[row, place] = vocabulary.encode(self._spelled(values, spec)) + first
        for column, spec in enumerate(self.plain):
            if spec.name in done:
                continue
            numbers = standardise(parse_numbers(piece, spec.name, spec.fill), self.numbers[spec.name])
            large = np.abs(numbers) > np.finfo(np.float32).max
            if large.any():
                raise piece.fault(int(large.argmax()), spec.name, "is too large a number for float32", "too large")
            numeric[:, column] = numbers

    def values(self, piece: Piece, spec: FieldSchema) -> pl.Series:
        """Return the strings of a single-id field; bucketed numbers become the bucket's number."""
        if not spec.bucketed:
            return self._spelled(piece.frame[spec.name], spec)
        return buckets(parse_numbers(piece, spec.name, spec.fill), spec, self.numbers[spec.name])

    def _spelled(self, values: pl.Series, spec: FieldSchema) -> pl.Series:
        return one_spelling(values) if spelling_of(spec, self.schema) == "number" else values

    def _extras(self, piece: Piece) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for spec in self.schema.of_kind("weight", "timestamp"):
            found[spec.kind] = extra(piece, spec)
        for spec in self.schema.of_kind("group"):
            # a group only has to tell examples apart, in any split: a stable hash does, without a vocabulary
            exact = self.version == 1 or spec.spelling == "exact"
            found["group"] = Hashed(2**31 - 2, exact).encode(piece.frame[spec.name])
        return found

    def encode_row(self, row: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Encode one raw row for serving: the model's inputs `ids` [1, columns] and, if there are any, `numeric`.

        Values may be of any type that a file could have given them: Python, NumPy, pandas and polars scalars, dates,
        decimals; lists, tuples, arrays and series for several ids; None, NaN, NaT and pandas' NA for what is missing.
        The label may be missing.

        Raises:
            DataError: a field is missing, a number cannot be read, or a value is of a type that no file has.
        """
        cells = cells_of(row, self.schema, self.version)
        ids = np.zeros((1, self.layout.width), dtype=np.int32)
        numeric = np.zeros((1, len(self.plain)), dtype=np.float32)
        done = self._singles.ids(cells, ids) | self._singles.numbers(cells, numeric)
        piece = piece_of({name: cell for name, cell in cells.items() if name not in done})
        self._fill(piece, ids, numeric, done)
        parse_labels(piece, self.schema.label.name)
        self._extras(piece)
        return {"ids": ids, "numeric": numeric} if self.plain else {"ids": ids}

    @cached_property
    def _singles(self) -> SingleCells:
        places = [
            Place(
                spec.name,
                field.start,
                self.vocabularies[field.segment],
                self.first_row[field.segment],
                spelling_of(spec, self.schema) == "number",
            )
            for spec, field in zip(self.id_fields, self.layout.fields, strict=True)
            if field.kind == "categorical" and not spec.bucketed
        ]
        return SingleCells(places, self.plain, self.numbers)


def extra(piece: Piece, spec: FieldSchema) -> NDArray[np.float64]:
    """Return the weights or times of a piece. Raises RowError: no number, or a negative weight."""
    parse = parse_times if spec.kind == "timestamp" else parse_numbers
    found = parse(piece, spec.name, spec.fill)
    negative = found < 0
    if spec.kind == "weight" and negative.any():
        raise piece.fault(int(negative.argmax()), spec.name, "is a negative weight", "negative")
    return found


def checked(piece: Piece, schema: Schema) -> dict[str, NDArray[np.float64]]:
    """Parse everything that can be wrong with a piece; returns the numeric fields. Raises RowError."""
    parse_labels(piece, schema.label.name)
    for spec in schema.of_kind("weight", "timestamp"):
        extra(piece, spec)
    return {spec.name: parse_numbers(piece, spec.name, spec.fill) for spec in schema.of_kind("numeric")}


def spelling_of(spec: FieldSchema, schema: Schema) -> str:
    """Return how the vocabulary that a field uses takes numbers: as its owner says."""
    if spec.vocabulary is None or spec.vocabulary == spec.name:
        return spec.spelling
    return next(field.spelling for field in schema.fields if field.name == spec.vocabulary)


def spread(cells: pl.Series, spec: FieldSchema) -> tuple[NDArray[np.int64], NDArray[np.int64], pl.Series]:
    """Return row, place and text of each id in multi-valued cells: the first `length`, or the last of a sequence.

    Cells are lists of strings, as Parquet and JSON have them, or strings that are cut at the field's separator.
    """
    lists = cells if isinstance(cells.dtype, pl.List) else cells.str.split(spec.separator)
    lists = lists.fill_null([]).list.eval(pl.element().filter(pl.element() != ""))
    lists = lists.list.tail(spec.length) if spec.kind == "sequence" else lists.list.head(spec.length)
    counts = lists.list.len().to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(cells)), counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row, place, lists.filter(lists.list.len() > 0).explode()


class Fitter:
    """Collects counts and moments of train rows, piece by piece."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.id_fields = [field for field in schema.fields if field.has_ids]
        self.counters = {field.vocabulary or field.name: Counter() for field in self.id_fields}
        self.numbers = {field.name: NumberFit() for field in schema.of_kind("numeric")}
        self.rows = 0

    def add(self, piece: Piece, train: NDArray[np.bool_]) -> None:
        """Take in the train rows of a piece, once every row of it is known to fit.

        Raises:
            RowError: a row holds what its field cannot take; nothing of the piece was taken in.
        """
        numeric = checked(piece, self.schema)
        self.rows += int(train.sum())
        mask = pl.Series(train)
        for spec in self.schema.of_kind("numeric"):
            numbers = numeric[spec.name][train]
            self.numbers[spec.name].add(numbers, keep=spec.transform == "quantile")
            if spec.transform == "log-squared":
                self.counters[spec.vocabulary or spec.name].add(buckets(numbers, spec, {}))
        for spec in self.id_fields:
            if spec.bucketed or spec.buckets is not None:
                continue
            cells = piece.frame[spec.name].filter(mask)
            values = cells if spec.kind == "categorical" else spread(cells, spec)[2]
            if spelling_of(spec, self.schema) == "number":
                values = one_spelling(values)
            self.counters[spec.vocabulary or spec.name].add(values)

    def finish(self) -> Encoder:
        """Return the encoder. Raises DataError if no train row was seen, or a field spells one number in two ways."""
        if not self.rows:
            raise DataError("the train split is empty: nothing to build vocabularies from")
        numbers = {spec.name: self.numbers[spec.name].result(spec) for spec in self.schema.of_kind("numeric")}
        owners = {spec.name: spec for spec in self.id_fields if spec.vocabulary is None}
        known: dict[str, Vocabulary | Hashed] = {}
        for name, spec in owners.items():
            if spec.buckets is not None:
                known[name] = Hashed(spec.buckets, spec.spelling == "exact")
            elif spec.transform == "quantile":
                edges = numbers[name]["edges"]
                known[name] = Vocabulary(pl.Series([str(i) for i in range(len(edges) + 1)], dtype=pl.String))
            else:
                if spec.spelling == "auto" and not spec.bucketed:
                    self._check_spellings(name)
                known[name] = Vocabulary(self.counters[name].frequent(spec.minimum_count), spec.spelling == "exact")
        return Encoder(self.schema, known, numbers)

    def _check_spellings(self, name: str) -> None:
        found = self.counters[name].two_spellings()
        if found is not None:
            one, other, count = found
            numbers = "1 number" if count == 1 else f"{count:,} numbers"
            raise DataError(
                f"the field {name!r} spells {numbers} in two ways, such as {one!r} and {other!r}; set "
                "spelling: number on it in the schema if they are one id, or spelling: exact if they are two"
            )
