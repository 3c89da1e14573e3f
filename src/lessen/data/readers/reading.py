"""Which files, in which format, and their rows in pieces: where the formats meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lessen.data.readers.delimited import header_of, read_delimited
from lessen.data.readers.faults import Faults
from lessen.data.readers.json_lines import keys_of, read_json_lines
from lessen.data.readers.lines import text_blocks
from lessen.data.readers.opening import start_of
from lessen.data.readers.parquet import MAGIC, names_of, read_parquet
from lessen.data.readers.piece import Piece
from lessen.data.readers.settings import SUFFIXES, Format, ReadSettings, bare_suffix
from lessen.data.readers.sparse import read_libsvm, read_vw
from lessen.errors import DataError
from lessen.log import SILENT, Log

PIECE_BYTES = 32 << 20
HEAD_BYTES = 4 << 20


def find_files(patterns: Iterable[str | Path]) -> list[Path]:
    """Return the files that names, globs and folders stand for, sorted inside each. Raises DataError if one has none.

    A folder stands for the files in it whose name ends as a table's does.
    """
    found: list[Path] = []
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(child for child in path.iterdir() if child.is_file() and bare_suffix(child) in SUFFIXES)
            if not matches:
                raise DataError(f"{path} holds no file ending in {', '.join(sorted(SUFFIXES))}")
        elif path.exists():
            matches = [path]
        else:
            if not any(letter in path.name for letter in "*?["):
                raise DataError(f"no file matches {pattern}: {path} does not exist; check the path")
            matches = sorted(child for child in path.parent.glob(path.name) if child.is_file())
            if not matches:
                raise DataError(f"no file matches {pattern}; check the path")
        found += matches
    return found


def format_of(path: Path, given: Format | None = None, log: Log = SILENT) -> Format:
    """Return the format of a file: as given, or by the end of its name; Parquet by its first bytes. Raises DataError.

    A name that lies about Parquet is said; one that was `given` and is wrong is an error.
    """
    named = given or SUFFIXES.get(bare_suffix(path))
    head = start_of(path)
    if head.startswith(MAGIC) and named != "parquet":
        if given is not None:
            raise DataError(f"{path} is Parquet by its first bytes, not {given}; set the format to parquet")
        if named is not None:
            log.note(f"{path} is Parquet by its first bytes, not {named} as its name says; it is read as Parquet")
        return "parquet"
    if named is None:
        ends = ", ".join(SUFFIXES)
        raise DataError(
            f"cannot tell the format of {path} from its name; rename it to end in one of {ends}, or give --format"
        )
    return named


def read_pieces(
    path: Path,
    settings: ReadSettings,
    columns: Sequence[str] | None = None,
    lists: Mapping[str, str] | None = None,
    size: int = PIECE_BYTES,
    faults: Faults | None = None,
    log: Log = SILENT,
) -> Iterator[Piece]:
    """Yield the rows of a file in order, in pieces of about `size` bytes of text (200,000 rows of Parquet).

    Cells are strings (Parquet: the types of the file); what is missing is null.

    Args:
        columns: what is needed; None for all. Columns that a piece lacks are left out of its frame.
        lists: columns whose JSON lists stay lists, each with the separator of cells that are text.
        faults: takes rows that cannot be read; without, the first one raises.

    Raises:
        DataError: the file is absent, empty, cut, damaged, or not of this format.
    """
    kind = format_of(path, settings.format, log)
    rows = 0
    for piece in _pieces(path, replace(settings, format=kind), columns, lists or {}, size, faults, log):
        if columns is not None:
            here = set(piece.frame.columns)
            piece = replace(piece, frame=piece.frame.select([name for name in columns if name in here]))
        rows += len(piece.frame)
        yield piece
    if not rows and not (faults is not None and faults.count):
        below = " below its header: no rows" if kind in ("csv", "tsv") and settings.header else ""
        raise DataError(f"{path} holds no row{below}")


def _pieces(
    path: Path,
    settings: ReadSettings,
    columns: Sequence[str] | None,
    lists: Mapping[str, str],
    size: int,
    faults: Faults | None,
    log: Log,
) -> Iterator[Piece]:
    if settings.format == "parquet":
        return read_parquet(path, columns)
    if settings.format == "jsonl":
        return read_json_lines(path, settings, size, columns, lists, faults, log)
    if settings.format == "vw":
        return read_vw(path, settings, size, faults, log)
    if settings.format == "libsvm":
        return read_libsvm(path, settings, size, faults, log)
    return read_delimited(path, settings, size, faults, log)


def columns_of(path: Path, settings: ReadSettings) -> tuple[str | None, list[str]]:
    """Return the separator (of csv and tsv) and the names of a file's columns. Raises DataError as `read_pieces`."""
    kind = format_of(path, settings.format)
    settings = replace(settings, format=kind)
    if kind in ("csv", "tsv"):
        separator, names = header_of(path, settings)
        return separator, list(names)
    if kind == "parquet":
        return None, names_of(path)
    if kind == "jsonl":
        return None, keys_of(path, settings, HEAD_BYTES)
    if kind == "libsvm" and settings.placed:
        line = next((block for block, _ in text_blocks(path, settings, HEAD_BYTES)), b"").partition(b"\n")[0]
        return None, ["label", *(f"f{place}" for place in range(len(line.split()) - 1))]
    first = next(_pieces(path, settings, None, {}, HEAD_BYTES, None, SILENT), None)
    return None, [] if first is None else first.frame.columns
