"""Text files in bounded pieces: whole records only, quotes respected, encodings and damage named by line."""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from lessen.errors import DataError

BLOCK = 16 << 20
_LONGEST_RECORD = 64 << 20


def open_text(path: Path) -> BinaryIO:
    """Open a plain or gzip file and refuse UTF-16. Raises DataError."""
    try:
        handle = cast(BinaryIO, _opener(path)(path, "rb"))
        start = handle.read(4)
        handle.seek(3 if start.startswith(codecs.BOM_UTF8) else 0)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16; convert it to UTF-8 first")
    return handle


def _opener(path: Path) -> Callable[..., object]:
    return gzip.open if path.suffix == ".gz" else open


def records(path: Path, quote: str | None, encoding: str) -> Iterator[tuple[bytes, int]]:
    """Yield (piece, first line number) where each piece is whole records in UTF-8, about `BLOCK` bytes.

    Raises:
        DataError: a quote that never closes, a truncated gzip file, or bytes that are not `encoding`.
    """
    mark = quote.encode() if quote else b""
    pending, line = b"", 1
    with open_text(path) as handle:
        while True:
            try:
                block = handle.read(BLOCK)
            except (OSError, EOFError) as error:
                raise DataError(f"cannot read {path} after line {line}: {error}; is it truncated?") from error
            pending += block
            end = len(pending) if not block else _end_of_records(pending, mark)
            if not block and mark and pending.count(mark) % 2:
                raise _unterminated(path, pending, mark, line)
            if end == 0 and len(pending) > _LONGEST_RECORD:
                raise _unterminated(path, pending, mark, line)
            piece, pending = pending[:end], pending[end:]
            if piece:
                yield _to_utf8(piece, encoding, path, line), line
                line += piece.count(b"\n")
            if not block:
                return


def _end_of_records(data: bytes, mark: bytes) -> int:
    """Return the position after the last newline that is outside quotes, 0 if there is none."""
    end = data.rfind(b"\n") + 1
    if not mark:
        return end
    open_quotes = data.count(mark, 0, end) % 2
    while end and open_quotes:
        before = data.rfind(b"\n", 0, end - 1) + 1
        open_quotes = (open_quotes - data.count(mark, before, end)) % 2
        end = before
    return end


def _unterminated(path: Path, data: bytes, mark: bytes, line: int) -> DataError:
    at = line + data.count(b"\n", 0, data.find(mark))
    shown = data[data.find(mark) :][:30].decode("utf-8", "replace").split("\n")[0]
    return DataError(
        f"{path}: a quote never closes (quoting starts at or after line {at}: {shown!r}); repair the file, or read "
        "quotes as plain characters with --quote none"
    )


def _to_utf8(piece: bytes, encoding: str, path: Path, line: int) -> bytes:
    try:
        if encoding == "utf8":
            piece.decode("utf-8")
            return piece
        return piece.decode("utf-8" if encoding == "utf8-lossy" else encoding, "replace").encode()
    except UnicodeDecodeError as error:
        at = line + piece.count(b"\n", 0, error.start)
        raise DataError(
            f"{path} line {at}: byte 0x{piece[error.start]:02x} is not UTF-8; name the encoding with --encoding "
            "latin-1, or replace such bytes with --encoding utf8-lossy"
        ) from error
