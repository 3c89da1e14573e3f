"""A first guess at the schema of a log, from its first rows; meant to be read and edited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from lessen.data.logs import expand, header_names, read_blocks, read_pieces
from lessen.data.schema import FieldSchema, Format, Schema, check_schema
from lessen.errors import DataError

SAMPLE_BYTES = 4 << 20
SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "tsv", ".txt": "csv", ".inter": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".svm": "libsvm", ".libsvm": "libsvm", ".libfm": "libsvm",
}  # fmt: skip
LABELS = ("label", "click", "clicked", "is_click", "target", "y")
TIMES = ("timestamp", "time", "time_stamp", "ts")
LARGEST_CATEGORY_SHARE = 0.2
LIST_SEPARATORS = "|^;"


def infer_schema(pattern: str | Path, label: str | None = None) -> Schema:
    """Guess format, separator, header and the kind of each column from the first 4 MB.

    Args:
        pattern: a file or a glob, whose first file is looked at.
        label: name of the label column, if the guess would miss it.

    Raises:
        DataError: the file is absent or empty, its kind is unknown, or no column can be the label.
    """
    path = expand([str(pattern)])[0]
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
    sample = next(iter(read_pieces(path, draft, SAMPLE_BYTES))).frame
    chosen = label or _label(sample, path)
    if chosen not in sample.columns:
        raise DataError(f"{path} has no column {chosen!r}; it has {', '.join(sample.columns[:12])}")
    # the numbers of a libsvm file are indices whatever they look like
    guess = (lambda name: FieldSchema(name=name, kind="categorical")) if kind == "libsvm" else _guess_in(sample)
    fields = tuple(FieldSchema(name=name, kind="label") if name == chosen else guess(name) for name in sample.columns)
    return check_schema(draft.model_copy(update={"fields": fields}))


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


def _guess_in(sample: pl.DataFrame) -> Callable[[str], FieldSchema]:
    return lambda name: _guess(name, sample[name])


def _guess(name: str, column: pl.Series) -> FieldSchema:
    numbers = column.cast(pl.Float64, strict=False)
    filled = column != ""
    numeric = bool(((numbers.is_not_null()) | ~filled).all()) and bool(filled.any())
    if numeric and name.lower().partition(":")[0] in TIMES:
        return FieldSchema(name=name, kind="timestamp")
    for separator in LIST_SEPARATORS:
        if column.str.contains(separator, literal=True).mean() > 0.05:  # type: ignore[operator]
            length = int(column.str.count_matches(separator, literal=True).max() or 0) + 1  # type: ignore[arg-type]
            return FieldSchema(name=name, kind="multi", separator=separator, length=length)
    fractional = numeric and bool((numbers != numbers.round()).any())
    many = column.n_unique() > LARGEST_CATEGORY_SHARE * len(column)
    if fractional or (numeric and many and not name.lower().endswith("id")):
        return FieldSchema(name=name, kind="numeric", transform="standard", fill=None if filled.all() else 0.0)
    return FieldSchema(name=name, kind="categorical")
