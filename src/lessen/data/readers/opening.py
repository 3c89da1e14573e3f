"""The bytes of a file, unpacked: gzip, zstandard, bzip2 and xz, known by their first bytes, in bounded memory.

Every member of a file is read (files joined by `cat` have several), and a file that stops inside one is named as cut,
with the byte; what a name says is believed only where the bytes agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lessen.data.readers.boundary import reason
from lessen.data.readers.settings import PACKED
from lessen.errors import DataError, LessenError, MissingExtraError
from lessen.log import SILENT, Log

FEED = 4096
"""Packed bytes unpacked at a time: a hostile file can make some 30,000 bytes of one."""
_HEAD = 16


class TornError(DataError):
    """A packed file stops or breaks in the middle; what was unpacked before is whole."""


def opened(path: Path, size: int, log: Log = SILENT) -> Iterator[bytes]:
    """Yield the unpacked bytes of `path` in parts of about `size`; says in one note where a name lies.

    Raises:
        DataError: the file cannot be read, is empty, or is not what its name says.
        TornError: a packed file is cut or damaged; the message names the byte.
        MissingExtraError: a zstandard file without the package.
    """
    head = start_of(path)
    if not head:
        raise DataError(f"{path} is empty; it needs at least one row")
    kind = _compression(path, head, log)
    parts = _plain(path, size) if kind is None else _members(path, kind)
    held: list[bytes] = []
    total = 0
    torn: TornError | None = None
    try:
        for part in parts:
            held.append(part)
            total += len(part)
            if total >= size:
                yield b"".join(held)
                held, total = [], 0
    except TornError as error:  # what is whole goes first, so that the last whole line can be counted
        torn = error
    if held:
        yield b"".join(held)
    if torn is not None:
        raise torn


def start_of(path: Path) -> bytes:
    """Return the first bytes of a regular file. Raises DataError."""
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; name the files in it, such as {path}/*.csv")
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no regular file (a pipe or device); save it to a file first")
        with path.open("rb") as handle:
            return handle.read(_HEAD)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def packed_kind(head: bytes) -> str | None:
    """Return how a file that starts with `head` is compressed, or None."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[:1] and head[0] >> 4 == 5):
        return "zstandard"
    if head[:3] == b"BZh" and head[3:4].isdigit() and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    return "xz" if head.startswith(b"\xfd7zXZ\x00") else None


def _compression(path: Path, head: bytes, log: Log) -> str | None:
    named, found = PACKED.get(path.suffix.lower()), packed_kind(head)
    if head.startswith(b"PK\x03\x04"):
        raise DataError(f"{path} is a zip archive; unpack it and name the files in it")
    if named and found is None:
        raise DataError(f"{path} is not {named} as its name says: it starts with {head[:8]!r}; rename it")
    if found != named:
        expected = f"not {named} as its name says" if named else "though its name does not say so"
        log.note(f"{path} is {found} by its first bytes, {expected}; it is read as {found}")
    return found


def _plain(path: Path, size: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as handle:
            while part := handle.read(size):
                yield part
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _members(path: Path, kind: str) -> Iterator[bytes]:
    """Unpack member after member; each decoder says where its own ends."""
    decoder: Any = None
    at = 0
    try:
        with path.open("rb") as handle:
            while raw := handle.read(FEED):
                while raw:
                    if decoder is None:
                        raw, at = _without_padding(kind, raw, at)
                        if not raw:
                            break
                        _check_member(path, kind, raw, at)
                        decoder = _decoder(kind, path)
                    out = decoder.decompress(raw)
                    if out:
                        yield out
                    rest = decoder.unused_data if decoder.eof else b""
                    at += len(raw) - len(rest)
                    raw, decoder = rest, None if decoder.eof else decoder
    except (LessenError, GeneratorExit):
        raise
    except Exception as error:
        raise TornError(f"{path} is damaged at or before byte {at + FEED:,} ({kind}: {reason(error)})") from error
    if decoder is not None:
        raise TornError(f"{path} is truncated: it ends at byte {at:,}, inside its {kind} stream; copy it again")


def _without_padding(kind: str, raw: bytes, at: int) -> tuple[bytes, int]:
    """Drop the zero bytes that tapes and block devices leave behind members of gzip and xz."""
    rest = raw.lstrip(b"\0") if kind in ("gzip", "xz") else raw
    return rest, at + len(raw) - len(rest)


def _check_member(path: Path, kind: str, raw: bytes, at: int) -> None:
    magic = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ", "zstandard": b"\x28\xb5\x2f\xfd"}[kind]
    short = raw[: len(magic)]
    skippable = kind == "zstandard" and raw[:1] and raw[0] >> 4 == 5 and b"\x2a\x4d\x18".startswith(raw[1:4])
    if not (magic.startswith(short) or skippable):
        raise TornError(f"{path} holds bytes behind its {kind} stream, from byte {at:,} on, that are no {kind}")


def _decoder(kind: str, path: Path) -> Any:
    if kind == "gzip":
        import zlib

        return zlib.decompressobj(wbits=31)
    if kind == "zstandard":
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError("checkpoints", "zstandard", f"reading {path.name}") from error
        return zstandard.ZstdDecompressor().decompressobj()
    try:
        if kind == "bzip2":
            import bz2

            return bz2.BZ2Decompressor()
        import lzma

        return lzma.LZMADecompressor()
    except ImportError as error:
        raise DataError(f"{path} is {kind}, which this Python was built without; unpack it first") from error
