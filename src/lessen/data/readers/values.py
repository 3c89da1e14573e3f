"""One canonical text a value: what an id, number or time is called, whatever type a file or a caller gives it.

3, 3.0 and Decimal("3.00") are 3; True is 1; NaN is missing; times are ISO text in UTC where a zone is known. Text
stays as it is written. `numerals` says which texts spell the same number: 01, 1.0 and True spell 1.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence

import polars as pl

from lessen.errors import DataError

_INTEGRAL = r"^([-+]?)0*(?:(\d+)|(\d{1,15})\.0*)$"
_FLOAT = r"^[-+]?(?:\d+\.\d*|\d(?:\.\d+)?[eE][-+]?\d{1,3})$"
"""Whole numbers of over 15 digits with a point, and powers of ten, went through a float: so do they here."""
_LARGEST_EXACT = float(2**53)
_TIME = "%Y-%m-%d %H:%M:%S%.f"


def as_text(frame: pl.DataFrame, where: str, names: Sequence[str] | None = None) -> pl.DataFrame:
    """Return the columns as strings, or lists of strings where they are lists; what is missing is null.

    Raises:
        DataError: a column holds objects, lists of lists or bytes that are no text; it is named.
    """
    columns, kinds = [], frame.schema  # made anew each time it is asked for, which thousands of columns feel
    for name in names if names is not None else frame.columns:
        kind = kinds[name]
        if kind == pl.String or kind == pl.List(pl.String):
            columns.append(pl.col(name))
            continue
        found = text_of(pl.col(name), kind)
        if found is None:
            raise DataError(f"{where}, column {name!r} holds {_called(kind)}; flatten it, or give it kind ignore")
        columns.append(found.alias(name))
    try:
        return frame.select(columns)
    except pl.exceptions.PolarsError as error:
        binary = [name for name, kind in kinds.items() if kind == pl.Binary]
        raise DataError(f"{where}, column {(binary or ['?'])[0]!r} holds bytes that are no text") from error


def _called(kind: pl.DataType) -> str:
    return "objects" if isinstance(kind, pl.Struct) else f"values of type {kind}"


def text_of(value: pl.Expr, kind: pl.DataType, nested: bool = True) -> pl.Expr | None:
    """Return the text of an expression of type `kind`, or None where there is none."""
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Null, pl.Date, pl.Binary) or kind.is_integer():
        return value.cast(pl.String)
    if kind == pl.Boolean:
        return value.cast(pl.Int8).cast(pl.String)
    if kind.is_float():
        return _float_text(value)
    if isinstance(kind, pl.Decimal):
        return _plain_decimals(value.cast(pl.String))
    if isinstance(kind, pl.Datetime):
        if kind.time_zone:
            utc = value.cast(pl.Datetime("us", kind.time_zone)).dt.convert_time_zone("UTC")
            return utc.dt.to_string(_TIME) + "+00:00"
        return value.cast(pl.Datetime("us")).dt.to_string(_TIME)
    if isinstance(kind, pl.Duration):
        return _float_text(value.dt.total_microseconds() / 1e6)
    if kind == pl.Time:
        return value.dt.to_string("%H:%M:%S%.f")
    if isinstance(kind, (pl.List, pl.Array)) and nested:
        inner = text_of(pl.element(), kind.inner, nested=False)  # type: ignore[arg-type]
        lists = value.arr.to_list() if isinstance(kind, pl.Array) else value
        return None if inner is None else lists.list.eval(inner)
    return None


def _float_text(value: pl.Expr) -> pl.Expr:
    """Return whole numbers without a fraction, others by the fewest digits that give them back, NaN as null.

    Narrow floats are widened first: callers get them as Python floats, which cannot tell. Whole numbers beyond 2^53
    have the digits of their shortest form and zeros, as JSON writers give them.
    """
    value = value.cast(pl.Float64)
    large = value.is_finite() & (value.abs() >= _LARGEST_EXACT)
    digits = pl.when((value == value.floor()) & ~large).then(value).cast(pl.Int64, strict=False).cast(pl.String)
    expanded = pl.when(large).then(value).map_batches(_expanded, return_dtype=pl.String)
    return pl.when(value.is_not_nan()).then(pl.coalesce(digits, expanded, value.cast(pl.String)))


def _expanded(values: pl.Series) -> pl.Series:
    if values.null_count() == len(values):
        return pl.Series(values.name, [None], dtype=pl.String).new_from_index(0, len(values))
    texts = [None if value is None else format(decimal.Decimal(repr(value)), "f") for value in values.to_list()]
    return pl.Series(values.name, texts, dtype=pl.String)


def _plain_decimals(text: pl.Expr) -> pl.Expr:
    cut = text.str.strip_chars_end("0").str.strip_chars_end(".")
    return pl.when(text.str.contains(".", literal=True)).then(cut).otherwise(text)


def numerals(texts: pl.Series) -> pl.Series:
    """Return for each text the canonical form of the number or truth value it spells, null where it spells none."""
    frame = pl.DataFrame({"text": texts})
    text = pl.col("text")
    whole = text.str.replace(_INTEGRAL, "$1$2$3").str.strip_chars_start("+")
    whole = pl.when(whole == "-0").then(pl.lit("0")).otherwise(whole)
    lower = text.str.to_lowercase()
    number = text.cast(pl.Float64, strict=False)
    return frame.select(
        pl.when(text.str.contains(_INTEGRAL))
        .then(whole)
        .when(text.str.contains(_FLOAT) & number.is_finite())
        .then(_float_text(number))
        .when(lower == "true")
        .then(pl.lit("1"))
        .when(lower == "false")
        .then(pl.lit("0"))
    ).to_series()


def one_spelling(texts: pl.Series) -> pl.Series:
    """Return the texts with every number in its canonical form; other text stays."""
    return pl.select(pl.coalesce(numerals(texts), texts)).to_series().alias(texts.name)


def two_spellings(distinct: pl.Series) -> tuple[str, str, int] | None:
    """Return two texts that spell one number in a column that is mostly numbers, and how many such numbers there are.

    Args:
        distinct: the distinct texts of a column.
    """
    numbers = distinct.cast(pl.Int64, strict=False)
    words = numbers.null_count()
    if numbers.n_unique() == len(numbers) and (not words or (words == 1 and (distinct == "").any())):
        return None
    distinct = distinct.filter(distinct.str.len_bytes() > 0).rename("text")
    known = pl.DataFrame({"text": distinct, "key": numerals(distinct)}).drop_nulls()
    if len(known) * 2 < len(distinct):
        return None  # words among which some look like numbers: 01 is not 1 there
    twice = known.filter(pl.col("key").is_duplicated()).sort("key", "text")
    if not len(twice):
        return None
    first = twice.filter(pl.col("key") == twice["key"][0])["text"]
    return str(first[0]), str(first[1]), twice["key"].n_unique()
