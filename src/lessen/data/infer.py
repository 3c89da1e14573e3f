"""A first guess at the schema of a log, from its first rows; meant to be read and edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from lessen.data.logs import expand, header_names, read_blocks, read_pieces
from lessen.data.schema import FieldSchema, Format, Schema, check_schema
from lessen.errors import DataError
from lessen.files import dump_yaml

SAMPLE_BYTES = 4 << 20
SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "tsv", ".txt": "csv", ".inter": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".svm": "libsvm", ".libsvm": "libsvm", ".libfm": "libsvm",
}  # fmt: skip
LABELS = ("label", "click", "clicked", "is_click", "target", "y")
TIMES = ("timestamp", "time", "time_stamp", "ts")
WEIGHTS = ("weight", "sample_weight", "example_weight")
LARGEST_CATEGORY_SHARE = 0.2
LIST_SEPARATORS = "|^;"


EXAMPLES = 3
KINDS = "categorical, numeric, multi, sequence, label, weight, timestamp, group, ignore"


@dataclass(frozen=True)
class Inference:
    """A guessed schema and, for each field by name, what was seen in it and why it got its kind."""

    schema: Schema
    reasons: dict[str, str]

    def text(self) -> str:
        """Return the schema as YAML with a comment before each field: what a person reads and edits."""
        schema = self.schema
        top = {"format": schema.format, "separator": schema.separator, "header": schema.header}
        lines = [f"# kinds: {KINDS}\n", dump_yaml(top), "fields:\n"]
        for field in schema.fields:
            lines.append(f"# {self.reasons[field.name]}\n")
            lines.append(
                dump_yaml([{"name": field.name, "kind": field.kind, **field.model_dump(exclude_defaults=True)}])
            )
        return "".join(lines)


def infer_schema(pattern: str | Path, label: str | None = None) -> Schema:
    """Guess format, separator, header and the kind of each column from the first 4 MB; see `infer`."""
    return infer([pattern], label).schema


def infer(patterns: Sequence[str | Path], label: str | None = None) -> Inference:
    """Guess format, separator, header and the kind of each column from 4 MB of text, spread over the files.

    Args:
        patterns: files or globs with the same columns.
        label: name of the label column, if the guess would miss it.

    Raises:
        DataError: a file is absent or empty, its kind is unknown, a file lacks a column of the first, or no column
            can be the label.
    """
    paths = expand([str(pattern) for pattern in patterns])
    path = paths[0]
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = SUFFIXES.get(suffixes[-1] if suffixes else "")
    if kind is None:
        raise DataError(f"cannot tell the format of {path} from its name; rename it to one of {', '.join(SUFFIXES)}")
    if kind in ("csv", "tsv"):
        separator, names = _separator_and_names(path, kind)
        given = tuple(FieldSchema(name=name, kind="categorical") for name in names)
        draft = Schema(format=kind, separator=separator, fields=given)
    else:
        draft = Schema(format=kind, fields=tuple(_columns(path, kind)))
    each = max(SAMPLE_BYTES // len(paths), 1 << 16)
    sample = pl.concat([next(iter(read_pieces(file, draft, each))).frame for file in paths])
    chosen = label or _label(sample, path)
    if chosen not in sample.columns:
        raise DataError(f"{path} has no column {chosen!r}; it has {', '.join(sample.columns[:12])}")
    fields, reasons = [], {}
    for name in sample.columns:
        field, why = _guess_or_label(name, sample[name], chosen, kind)
        fields.append(field)
        reasons[name] = f"{_seen(name, sample[name])}; {why}"
    return Inference(check_schema(draft.model_copy(update={"fields": tuple(fields)})), reasons)


def _seen(name: str, column: pl.Series) -> str:
    """Return what a column holds in one line: distinct values, share of empty cells, its most frequent values."""
    empty = float((column == "").mean() or 0.0)  # type: ignore[arg-type]
    filled = column.filter(column != "")
    common = filled.value_counts(sort=True, name="rows").head(EXAMPLES)[filled.name].to_list()
    shown = ", ".join(repr(str(value)[:40]) for value in common) or "nothing"
    missing = f"{100 * empty:.1f} % empty" if empty else "none empty"
    name = " ".join(name.split())
    return f"{name}: {filled.n_unique():,} distinct in {len(column):,} rows, {missing}, such as {shown}"


def _separator_and_names(path: Path, kind: Format) -> tuple[str, list[str]]:
    first = next(read_blocks(path, SAMPLE_BYTES), b"").partition(b"\n")[0]
    if not first.strip():
        raise DataError(f"{path} is empty; it needs at least one row")
    separator = "\t" if kind == "tsv" else max(",;\t|", key=lambda letter: first.count(letter.encode()))
    return separator, header_names(path, first, separator)


def _columns(path: Path, kind: Format) -> list[FieldSchema]:
    if kind == "parquet":
        return [FieldSchema(name=name, kind="categorical") for name in pl.read_parquet_schema(path)]
    first = next(read_blocks(path, SAMPLE_BYTES), b"").partition(b"\n")[0]
    if kind == "jsonl":
        names = pl.read_ndjson(first).columns
    else:
        names = ["label", *(f"f{i}" for i in range(len(first.split()) - 1))]
    return [FieldSchema(name=name, kind="categorical") for name in names]


def _label(sample: pl.DataFrame, path: Path) -> str:
    binary = [name for name in sample.columns if set(sample[name].unique()) <= {"0", "1", "0.0", "1.0"}]
    named = [name for name in binary if name.lower().partition(":")[0] in LABELS]
    if not named and len(binary) != 1:
        found = ", ".join(binary) or "none"
        raise DataError(f"cannot tell the label of {path}: columns of 0 and 1 are {found}; name it with --label")
    return (named or binary)[0]


def _guess_or_label(name: str, column: pl.Series, label: str, kind: Format) -> tuple[FieldSchema, str]:
    if name == label:
        return FieldSchema(name=name, kind="label"), "only 0 and 1, and it is the label"
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
    if numeric and plain in WEIGHTS and bool((numbers.fill_null(0.0) >= 0).all()):
        fill = None if filled.all() else 1.0
        return FieldSchema(name=name, kind="weight", fill=fill), "never negative, and its name is that of a weight"
    for separator in LIST_SEPARATORS:
        if column.str.contains(separator, literal=True).mean() > 0.05:  # type: ignore[operator]
            length = int(column.str.count_matches(separator, literal=True).max() or 0) + 1  # type: ignore[arg-type]
            why = f"cells hold up to {length} ids between {separator!r}; if their order is time, make it a sequence"
            return FieldSchema(name=name, kind="multi", separator=separator, length=length), why
    fractional = numeric and bool((numbers != numbers.round()).any())
    many = column.n_unique() > LARGEST_CATEGORY_SHARE * len(column)
    if fractional or (numeric and many and not name.lower().endswith("id")):
        why = "numbers with fractions" if fractional else "whole numbers, most of them different"
        return FieldSchema(name=name, kind="numeric", transform="standard", fill=None if filled.all() else 0.0), why
    why = "whole numbers that repeat, taken as ids" if numeric else "text, taken as ids"
    return FieldSchema(name=name, kind="categorical"), why
