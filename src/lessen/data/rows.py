"""One raw row of a caller as the piece of a file that would hold it: every type that a file has, and no other."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lessen.data.readers.piece import Piece
from lessen.data.readers.values import as_text
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import DataError

_TIMES = (datetime.date, datetime.time, datetime.timedelta)
_SCALARS = (bool, int, float, decimal.Decimal, *_TIMES)
OPTIONAL = ("label", "weight", "timestamp", "group")


def cells_of(row: Mapping[str, Any], schema: Schema, version: int) -> dict[str, str | list[str]]:
    """Return the text of each field that is used, or its texts; what is missing is empty, or zero if only training
    needs it.

    Raises:
        DataError: a field is missing, or holds what no file holds; it is named.
    """
    cells: dict[str, str | list[str]] = {}
    for spec in schema.used:
        if spec.name in row:
            cells[spec.name] = _cell(row[spec.name], spec, schema, version)
        elif spec.kind in OPTIONAL:
            cells[spec.name] = "0"
        else:
            raise DataError(f"the row lacks the field {spec.name!r}")
    return cells


def piece_of(cells: Mapping[str, str | list[str]]) -> Piece:
    """Return a piece of one row with these cells."""
    kinds = {name: pl.List(pl.String) if isinstance(cell, list) else pl.String for name, cell in cells.items()}
    return Piece(pl.DataFrame({name: [cell] for name, cell in cells.items()}, schema=kinds), Path("row"), 1)


def _cell(value: Any, spec: FieldSchema, schema: Schema, version: int) -> str | list[str]:
    items = _items(value, spec)
    if items is None:
        if version == 1:
            return _first_edition(value)
        text = _text(value, spec)
        return "" if text is None or text in schema.missing else text
    if spec.kind not in ("multi", "sequence"):
        raise DataError(f"the field {spec.name!r} is given several values but has kind {spec.kind}")
    texts = [_first_edition(item) if version == 1 else _text(item, spec) for item in items]
    return [text for text in texts if text is not None and text not in schema.missing]


def _first_edition(value: Any) -> str:
    """Return what version 1 called a value: the text that Python gives it."""
    return "" if _missing(value) else str(int(value)) if isinstance(value, (bool, np.bool_)) else str(value)


def _items(value: Any, spec: FieldSchema) -> list[Any] | None:
    """Return the ids of a cell that holds several, None for a single value."""
    if isinstance(value, (str, bytes, *_SCALARS)) or value is None:
        return None
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            raise DataError(
                f"the field {spec.name!r} is given an array of shape {value.shape}; one dimension is a list"
            )
        return list(value) if value.ndim else None
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (set, frozenset, Mapping)):
        raise DataError(f"the field {spec.name!r} is given a {type(value).__name__}, which has no order; give a list")
    if isinstance(value, np.generic) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
        return None
    return list(value)  # series of pandas and polars, tensors: whatever can be walked through


def _missing(value: Any) -> bool:
    """Say whether a value stands for nothing: None, NaN, NaT, pandas' NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def _text(value: Any, spec: FieldSchema) -> str | None:
    """Return the canonical text of a value, None for what is missing. Raises DataError: no file has this type."""
    if isinstance(value, np.ndarray) or (
        hasattr(value, "item") and getattr(value, "ndim", 1) == 0 and not isinstance(value, np.generic)
    ):
        value = value.item()
    if _missing(value):
        return None
    if isinstance(value, (str, uuid.UUID)):
        return str(value)
    if isinstance(value, (bool, int, np.bool_, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return _float_text(float(value))
    if isinstance(value, (bytes, np.bytes_)):
        return _decoded(value, spec)
    if isinstance(value, decimal.Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, (np.datetime64, np.timedelta64)):
        value = value.astype("datetime64[us]" if isinstance(value, np.datetime64) else "timedelta64[us]").item()
    if not isinstance(value, _TIMES):
        raise DataError(
            f"the field {spec.name!r} is given a {type(value).__name__}; give text, a number, a time or a list"
        )
    moved = _at_zone(value) if isinstance(value, datetime.datetime) else value
    return _of_series(pl.Series("v", [moved]), spec)


def _float_text(value: float) -> str:
    """Return what `text_of` makes of a float, without asking polars where Python writes the same digits."""
    if value.is_integer():
        return str(int(value)) if abs(value) < 2.0**53 else format(decimal.Decimal(repr(value)), "f")
    plain = repr(value)
    return plain if plain[-1].isdigit() and "e" not in plain else str(pl.Series([value]).cast(pl.String)[0])


def _of_series(column: pl.Series, spec: FieldSchema) -> str | None:
    if spec.kind == "timestamp" and column.dtype.is_temporal() and column.dtype in (pl.Date, pl.Datetime):
        column = column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    found: str | None = as_text(column.to_frame(), f"the field {spec.name!r}")["v"][0]
    return found


def _at_zone(value: datetime.datetime) -> datetime.datetime:
    """Return a plain time, in UTC where a zone is known: polars takes no zones of its own making."""
    zone = None if value.tzinfo is None else datetime.timezone.utc
    moved = value if zone is None else value.astimezone(zone)
    return datetime.datetime.combine(moved.date(), moved.time(), zone)


def _decoded(value: bytes, spec: FieldSchema) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the field {spec.name!r} is given bytes that are no text") from error
