"""How a file is read: its format, separator, quotes, encoding; and what the end of a name says about it."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lessen.errors import ConfigError

Format = Literal["csv", "tsv", "jsonl", "parquet", "libsvm", "vw"]
FORMATS: tuple[Format, ...] = ("csv", "tsv", "jsonl", "parquet", "libsvm", "vw")
SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".txt": "csv", ".tsv": "tsv", ".inter": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet", ".svm": "libsvm", ".libsvm": "libsvm", ".libfm": "libsvm", ".vw": "vw",
}  # fmt: skip
PACKED = {".gz": "gzip", ".zst": "zstandard", ".bz2": "bzip2", ".xz": "xz"}
"""Ends of names that say how a file is compressed."""


@dataclass(frozen=True)
class ReadSettings:
    """How files are read. Everything that is None is found out from the file."""

    format: Format | None = None
    separator: str | None = None
    """Of csv: None takes the most frequent of comma, tab, semicolon and bar in the header; tsv always has tabs."""
    quote: str | None = '"'
    """Of csv and tsv: None reads quotes as plain characters."""
    encoding: str = "utf8"
    """`utf8`, `utf8-lossy` (bad bytes become U+FFFD) or a text codec that Python knows, such as `latin-1`."""
    header: bool = True
    """Whether csv and tsv start with names; without, columns are called by `names`, or c1, c2, ..."""
    names: tuple[str, ...] | None = None
    placed: bool = False
    """Whether the items of a libsvm row are columns by their place (f0, f1, ...) and not by their index."""

    def __post_init__(self) -> None:
        for name, letter in (("quote", self.quote), ("separator", self.separator)):
            if letter is not None and (len(letter.encode("utf-8", "replace")) != 1 or letter in "\r\n\0"):
                rest = ", or none" if name == "quote" else ""
                raise ConfigError(f"{name} = {letter!r} is not accepted: give one plain character{rest}")
        if self.quote is not None and self.quote == self.separator:
            raise ConfigError(f"quote and separator are both {self.quote!r}; give another --quote, or none")
        if self.encoding in ("utf8", "utf8-lossy"):
            return
        try:
            known = codecs.lookup(self.encoding)
        except LookupError as error:
            raise ConfigError(f"--encoding {self.encoding!r} is not an encoding that Python knows") from error
        if not getattr(known, "_is_text_encoding", True):
            raise ConfigError(f"--encoding {self.encoding!r} turns no bytes into text; name one such as latin-1")

    @property
    def codec(self) -> str | None:
        """Return the codec that has to be undone, or None where bytes are UTF-8 already."""
        if self.encoding == "utf8-lossy":
            return self.encoding
        name = codecs.lookup(self.encoding).name
        return None if name in ("utf-8", "utf-8-sig", "ascii") else name


def bare_suffix(path: Path) -> str:
    """Return the end of a name below that of its compression, lower case: `.csv` of a.csv.gz."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix
