"""Text in bounded pieces of whole records, as UTF-8: encodings undone, quotes respected, in time that is linear."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from lessen.data.readers.boundary import reason
from lessen.data.readers.opening import TornError, opened
from lessen.data.readers.settings import ReadSettings
from lessen.errors import DataError
from lessen.log import SILENT, Log

LONGEST_RECORD = 64 << 20
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_blocks(
    path: Path, settings: ReadSettings, size: int, quote: str | None = None, log: Log = SILENT
) -> Iterator[tuple[bytes, int]]:
    """Yield (whole records as UTF-8, line number of the first); a newline inside `quote` ends no record.

    Raises:
        DataError: the file is empty, damaged, cut, of another encoding, or a quote never closes.
    """
    cutter = _Cutter(quote)
    line = 1
    try:
        for part in _utf8(path, settings, opened(path, size, log)):
            block = cutter.add(part)
            if block:
                yield block, line
                line += block.count(b"\n")
            if cutter.held > LONGEST_RECORD:
                raise _unending(path, cutter, quote, line)
    except TornError as error:
        whole = line - 1 + cutter.rest().count(b"\n")
        raise TornError(f"{error} (line {whole:,} is the last one that is whole)") from error
    rest = cutter.rest()
    if quote and cutter.open:
        raise unclosed(path, rest, quote, line)
    if rest:
        yield rest, line


class _Cutter:
    """Cuts a stream after the last newline that is outside quotes; every byte is looked at once."""

    def __init__(self, quote: str | None) -> None:
        self.mark = quote.encode() if quote else b""
        self.pending: list[bytes] = []
        self.held = 0
        self.open = False
        """Whether a quote is open where the held bytes end."""

    def add(self, part: bytes) -> bytes:
        """Take `part` in; return what is complete up to its last record."""
        count = part.count(self.mark) if self.mark else 0
        self.open = self.open != bool(count % 2)
        cut = self._cut(part, count)
        if not cut:
            self.pending.append(part)
            self.held += len(part)
            return b""
        block = b"".join([*self.pending, part[:cut]])
        self.pending, self.held = [part[cut:]], len(part) - cut
        return block

    def _cut(self, part: bytes, count: int) -> int:
        """Return the length of the longest prefix that ends with a newline outside quotes, of which it has `count`."""
        inside, end = self.open, len(part)
        while True:
            start = part.rfind(self.mark, 0, end) if count else -1
            if not inside:
                found = part.rfind(b"\n", start + 1, end)
                if found >= 0:
                    return found + 1
            if start < 0:
                return 0
            end, count, inside = start, count - 1, not inside

    def rest(self) -> bytes:
        """Return the bytes behind the last whole record."""
        return b"".join(self.pending)


def _unending(path: Path, cutter: _Cutter, quote: str | None, line: int) -> DataError:
    if cutter.open and quote:
        return unclosed(path, cutter.rest(), quote, line)
    return DataError(f"{path}, line {line}: longer than {LONGEST_RECORD:,} bytes; is it a text file?")


def unclosed(path: Path, data: bytes, quote: str, line: int) -> DataError:
    """Return the error for records from `line` on in which a quote stays open, naming the line of that quote."""
    at = stray_quote(data, quote)
    where = line + data.count(b"\n", 0, at)
    shown = data[data.rfind(b"\n", 0, at) + 1 : at + 20].decode("utf-8", "replace").split("\n")[0]
    return DataError(
        f"{path}: a quote never closes (it stands in line {where}: {shown[:60]!r}); repair the line, or read quotes as "
        "plain characters with --quote none (quote: none in a schema)"
    )


def stray_quote(data: bytes, quote: str) -> int:
    """Return the place of the first quote that opens in the middle of a cell, else that of the last one.

    A quote may open at the start of a cell, and close before a separator or a line end; one that opens elsewhere is
    an inch mark. What stands before a cell is not known here, so any letter or digit before an opening quote tells.
    """
    mark, at, last = quote.encode(), data.find(quote.encode()), -1
    inside = False
    while at >= 0:
        before, after = data[at - 1 : at], data[at + 1 : at + 2]
        if not inside and (before.isalnum() or before >= b"\x80"):
            return at
        if inside and after == mark:
            last, at = at, data.find(mark, at + 2)
            continue
        if inside and (after.isalnum() or after >= b"\x80"):
            return at
        inside = not inside
        if inside:
            last = at
        at = data.find(mark, at + 1)
    return max(last, 0)


# -- encodings ------------------------------------------------------------------------------------------------------
def _utf8(path: Path, settings: ReadSettings, parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the text as UTF-8 without its mark. UTF-8 itself is passed on; whoever parses it finds bad bytes."""
    first = next(parts, b"")
    _check_mark(path, settings, first)
    codec = settings.codec
    if codec is None:
        yield first.removeprefix(codecs.BOM_UTF8)
        yield from parts
        return
    lossy = codec == "utf8-lossy"
    decoder = codecs.getincrementaldecoder("utf-8" if lossy else codec)("replace" if lossy else "strict")
    line, part = 1, first
    while part:
        try:
            text = decoder.decode(part)
        except UnicodeError as error:
            at = line + part.count(b"\n", 0, error.start) if isinstance(error, UnicodeDecodeError) else line
            raise DataError(f"{path}, line {at}: is not {settings.encoding} ({reason(error)[:80]})") from error
        if part is first:
            text = text.removeprefix("\ufeff")
        line += text.count("\n")
        yield text.encode("utf-8", "replace")
        part = next(parts, b"")
    if decoder.getstate()[0]:
        raise DataError(f"{path} ends in the middle of a character of {settings.encoding}; it may be cut")


def _check_mark(path: Path, settings: ReadSettings, first: bytes) -> None:
    """Refuse wide encodings that were not named: their bytes would pass for text with odd characters."""
    if settings.codec is not None and settings.codec.startswith(("utf-16", "utf-32", "utf_16", "utf_32")):
        return
    name = next((name for mark, name in _MARKS if first.startswith(mark)), None)
    if name is None and len(first) > 3 and b"\0" in first[:4]:
        odd, even = first[1:64:2], first[0:64:2]
        name = "utf-16-le" if not odd.strip(b"\0") else "utf-16-be" if not even.strip(b"\0") else None
    if name is not None:
        raise DataError(f"{path} is {name.upper()} by its first bytes; read it with --encoding {name}")


def check_utf8(path: Path, block: bytes, line: int) -> None:
    """Raise DataError naming the first line of `block` that is not UTF-8."""
    try:
        block.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + block.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {at}: byte 0x{block[error.start]:02x} is not UTF-8; name the encoding with --encoding "
            "latin-1, or replace such bytes with --encoding utf8-lossy"
        ) from error
