"""A first guess at the schema of a log, from its first rows; meant to be read and edited."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from lessen.data.numbers import ISO_TIME, NULL_WORDS
from lessen.data.readers import Format, ReadSettings, as_text, columns_of, find_files, format_of, read_pieces
from lessen.data.schema import FieldSchema, Schema, check_schema
from lessen.errors import DataError
from lessen.files import dump_yaml
from lessen.log import SILENT, Log

SAMPLE_BYTES = 4 << 20
SAMPLE_ROWS = 100_000
BINARY = {"0", "1", "0.0", "1.0", "true", "false"}
LABELS = ("label", "click", "clicked", "is_click", "target", "y")
TIMES = ("timestamp", "time", "time_stamp", "ts")
WEIGHTS = ("weight", "sample_weight", "example_weight")
LARGEST_CATEGORY_SHARE = 0.2
LIST_SEPARATORS = "|^;"
EXAMPLES = 3
LONGEST = 10_000
"""Ids of a cell that a schema can ask for."""
KINDS = "categorical, numeric, multi, sequence, label, weight, timestamp, group, ignore"


@dataclass(frozen=True)
class Inference:
    """A guessed schema and, for each field by name, what was seen in it and why it got its kind."""

    schema: Schema
    reasons: dict[str, str]

    def text(self) -> str:
        """Return the schema as YAML with a comment before each field: what a person reads and edits."""
        schema = self.schema
        lines = [f"# kinds: {KINDS}\n", dump_yaml(schema.top()), "fields:\n"]
        for field in schema.fields:
            lines.append(f"# {self.reasons[field.name]}\n")
            lines.append(
                dump_yaml([{"name": field.name, "kind": field.kind, **field.model_dump(exclude_defaults=True)}])
            )
        return "".join(lines)


def infer_schema(pattern: str | Path, label: str | None = None) -> Schema:
    """Guess format, separator, header and the kind of each column from the first 4 MB; see `infer`."""
    return infer([pattern], label).schema


def infer(
    patterns: Sequence[str | Path],
    label: str | None = None,
    quote: str | None = None,
    encoding: str = "utf8",
    log: Log = SILENT,
) -> Inference:
    """Guess format, separator, header and the kind of each column from 4 MB of text, spread over the files.

    Args:
        patterns: files, globs or folders with the same columns.
        label: name of the label column, if the guess would miss it.
        quote: quote character of csv and tsv, or `none`; None finds out whether quotes are plain characters.
        encoding: of the text; see `ReadSettings`.

    Raises:
        DataError: a file is absent or empty, its kind is unknown, a file lacks a column of the first, or no column
            can be the label.
    """
    paths = find_files(patterns)
    path = paths[0]
    settings = ReadSettings(
        format=format_of(path, None, log),
        quote='"' if quote is None else None if quote == "none" else quote,
        encoding=encoding,
        placed=True,
    )
    try:
        settings, sample = _sample(paths, settings)
    except DataError:
        if quote is not None or settings.format not in ("csv", "tsv"):
            raise
        settings, sample = _without_quotes(paths, settings)
        log.note(f"quotes in {path} are plain characters: the schema says quote: none")
    chosen = label or _label(sample.text, path)
    if chosen not in sample.text.columns:
        raise DataError(f"{path} has no column {chosen!r}; it has {', '.join(sample.text.columns[:12])}")
    words = _null_words(sample.text)
    text = (
        sample.text.with_columns(pl.when(~pl.all().is_in(words)).then(pl.all()).fill_null("")) if words else sample.text
    )
    fields, reasons = [], {}
    for name in text.columns:
        field, why = _guess_or_label(name, text[name], chosen, sample, settings.format or "csv")
        fields.append(field)
        reasons[name] = f"{_seen(name, text[name])}; {why}"
    top = {"format": settings.format, "quote": settings.quote or "none", "encoding": encoding, "missing": tuple(words)}
    if settings.separator is not None:
        top["separator"] = settings.separator
    return Inference(check_schema(Schema(**top, fields=tuple(fields))), reasons)


@dataclass(frozen=True)
class _Sample:
    """The first rows of every file as text, empty where nothing is; lists joined by a bar."""

    text: pl.DataFrame
    lists: dict[str, int]
    """Columns of lists, with the length of the longest."""
    nested: dict[str, str]
    """Columns that hold what no field can: the name of their type."""


def _without_quotes(paths: Sequence[Path], settings: ReadSettings) -> tuple[ReadSettings, _Sample]:
    """Read again with quotes as plain characters; raises what the first reading raised if that is no better."""
    try:
        return _sample(paths, replace(settings, quote=None))
    except DataError:
        return _sample(paths, settings)


def _sample(paths: Sequence[Path], settings: ReadSettings) -> tuple[ReadSettings, _Sample]:
    separator, names = columns_of(paths[0], settings)
    settings = replace(settings, separator=separator)
    each = max(SAMPLE_BYTES // len(paths), 1 << 16)
    texts, lists, nested = [], dict[str, int](), dict[str, str]()
    for path in paths:
        # two pieces: the second one ends a small file, and tells a quote that never closes
        pieces = [piece.frame for piece in itertools.islice(read_pieces(path, settings, size=each), 2)]
        frame = pl.concat(pieces, how="diagonal_relaxed").head(SAMPLE_ROWS)
        here = set(frame.columns)
        absent = [name for name in names if name not in here]
        if absent and settings.format not in ("jsonl", "vw"):
            raise DataError(
                f"{path} lacks the column {absent[0]!r} that {paths[0]} has; it has {', '.join(frame.columns)}"
            )
        frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in absent)
        texts.append(pl.DataFrame([_flat(frame[name], settings.format, lists, nested) for name in names]))
    return settings, _Sample(pl.concat(texts).fill_null(""), lists, nested)


def _flat(column: pl.Series, kind: Format | None, lists: dict[str, int], nested: dict[str, str]) -> pl.Series:
    """Return a column as text, and note what it really holds."""
    name = column.name
    if kind == "jsonl":
        odd = column.filter(column.str.contains(r"^[\[{]"))
        if len(odd) < 0.5 * (len(column) - column.null_count()):
            return column  # text, some of which starts with a bracket
        if odd.str.contains(r"^\[\s*[\[{]|^\{").any():
            nested[name] = "objects or lists of lists"
            return column
        column = column.str.strip_prefix("[").str.strip_suffix("]").str.replace_all('"', "").str.replace_all(", ", "|")
        lists[name] = max(lists.get(name, 1), int(column.str.count_matches("|", literal=True).max() or 0) + 1)  # type: ignore[arg-type]
        return column
    if isinstance(column.dtype, (pl.List, pl.Array)) and not column.dtype.inner.is_nested():
        column = as_text(column.to_frame(), "sample")[name]
        lists[name] = max(lists.get(name, 1), int(column.list.len().max() or 1))  # type: ignore[arg-type]
        return column.list.join("|")
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        nested[name] = f"values of type {column.dtype}"
        return pl.Series(name, [None] * len(column), dtype=pl.String)
    return as_text(column.to_frame(), "sample")[name]


def _null_words(sample: pl.DataFrame) -> list[str]:
    """Return the words that stand for nothing in columns of numbers."""
    found: dict[str, None] = {}
    for name in sample.columns:
        words = sample[name].filter(sample[name].cast(pl.Float64, strict=False).is_null() & (sample[name] != ""))
        distinct = words.unique()
        numbers = len(sample) - len(words) - int((sample[name] == "").sum())
        if len(distinct) and numbers > len(words) and distinct.str.to_lowercase().is_in(NULL_WORDS).all():
            found |= dict.fromkeys(sorted(distinct.to_list()))
    return list(found)


def _seen(name: str, column: pl.Series) -> str:
    """Return what a column holds in one line: distinct values, share of empty cells, its most frequent values."""
    empty = float((column == "").mean() or 0.0)  # type: ignore[arg-type]
    filled = column.filter(column != "")
    common = filled.value_counts(sort=True, name="rows").head(EXAMPLES)[filled.name].to_list()
    shown = ", ".join(repr(str(value)[:40]) for value in common) or "nothing"
    missing = f"{100 * empty:.1f} % empty" if empty else "none empty"
    name = " ".join(name.split())
    return f"{name}: {filled.n_unique():,} distinct in {len(column):,} rows, {missing}, such as {shown}"


def _label(sample: pl.DataFrame, path: Path) -> str:
    binary = [name for name in sample.columns if set(sample[name].str.to_lowercase().unique()) <= BINARY]
    named = [name for name in binary if name.lower().partition(":")[0] in LABELS]
    if not named and len(binary) != 1:
        found = ", ".join(binary) or "none"
        raise DataError(f"cannot tell the label of {path}: columns of 0 and 1 are {found}; name it with --label")
    return (named or binary)[0]


def _guess_or_label(name: str, column: pl.Series, label: str, sample: _Sample, kind: Format) -> tuple[FieldSchema, str]:
    if name == label:
        return FieldSchema(name=name, kind="label"), "only 0 and 1, and it is the label"
    if name in sample.nested:
        return FieldSchema(name=name, kind="ignore"), f"{sample.nested[name]}, which no field can take: not read"
    if name in sample.lists:
        length = min(sample.lists[name], LONGEST)
        why = f"lists of up to {sample.lists[name]} ids; if their order is time, make it a sequence"
        return FieldSchema(name=name, kind="multi", length=length), why
    if kind == "vw":
        return FieldSchema(name=name, kind="multi", separator=" ", length=20), "a namespace: features between blanks"
    if kind == "libsvm":
        return FieldSchema(
            name=name, kind="categorical"
        ), "the indices of a libsvm file are ids whatever they look like"
    return _guess(name, column)


def _guess(name: str, column: pl.Series) -> tuple[FieldSchema, str]:
    """Return the field and why it was chosen."""
    numbers = column.cast(pl.Float64, strict=False)
    filled = column != ""
    numeric = bool(((numbers.is_not_null()) | ~filled).all()) and bool(filled.any())
    plain = name.lower().partition(":")[0]
    if numeric and plain in TIMES:
        return FieldSchema(name=name, kind="timestamp"), "numbers, and its name is that of a time; it is no input"
    if plain in TIMES and filled.all() and column.str.contains(ISO_TIME).all():
        return FieldSchema(name=name, kind="timestamp"), "ISO times, and its name is that of a time; it is no input"
    if numeric and plain in WEIGHTS and bool((numbers.fill_null(0.0) >= 0).all()):
        fill = None if filled.all() else 1.0
        return FieldSchema(name=name, kind="weight", fill=fill), "never negative, and its name is that of a weight"
    for separator in LIST_SEPARATORS:
        if column.str.contains(separator, literal=True).mean() > 0.05:  # type: ignore[operator]
            length = min(int(column.str.count_matches(separator, literal=True).max() or 0) + 1, LONGEST)  # type: ignore[arg-type]
            why = f"cells hold up to {length} ids between {separator!r}; if their order is time, make it a sequence"
            return FieldSchema(name=name, kind="multi", separator=separator, length=length), why
    fractional = numeric and bool((numbers != numbers.round()).any())
    many = column.n_unique() > LARGEST_CATEGORY_SHARE * len(column)
    if fractional or (numeric and many and not name.lower().endswith("id")):
        why = "numbers with fractions" if fractional else "whole numbers, most of them different"
        return FieldSchema(name=name, kind="numeric", transform="standard", fill=None if filled.all() else 0.0), why
    why = "whole numbers that repeat, taken as ids" if numeric else "text, taken as ids"
    return FieldSchema(name=name, kind="categorical"), why
