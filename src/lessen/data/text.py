"""Documents of text: news that a package ships, or a text file or folder of your own, cut into documents as you say.

line        every line that is not blank
paragraph   what blank lines separate
article     what follows a heading of the first level, ` = Title = ` (WikiText)
file        the whole file; of a folder, each file
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from lessen.data.catalogue import read
from lessen.errors import DataError
from lessen.log import SILENT, Log

Unit = Literal["line", "paragraph", "article", "file"]
Split = Literal["train", "validation", "test"]
Item = TypeVar("Item")
NEWS = "news"
"""Name of the built-in text: 300 news items, one a line."""
_NEWS_MEMBER = "gensim/test/test_data/lee_background.cor"
_HEADING = re.compile(r"^ = [^=].* = $", re.MULTILINE)


def documents(source: str, unit: Unit | None = None, log: Log = SILENT) -> list[str]:
    """Return the documents of the built-in text `news`, or of a UTF-8 file or a folder of `.txt` files.

    Args:
        unit: how a file is cut; by default lines for `news`, paragraphs for a file, files for a folder.

    Raises:
        DataError: there is no such file, it is not UTF-8, or it holds no document.
    """
    path = Path(source)
    if source == NEWS and not path.exists():
        return _lines(read("lee-news", _NEWS_MEMBER, log).decode("utf-8"))
    if path.is_dir():
        paths = sorted(path.glob("*.txt"))
        cut = _CUTS[unit or "file"]
    elif path.is_file():
        paths, cut = [path], _CUTS[unit or "paragraph"]
    else:
        raise DataError(f"no text at {source!r}; give a UTF-8 file, a folder of .txt files, or the word {NEWS!r}")
    found = [document for one in paths for document in cut(_text(one))]
    if not found:
        raise DataError(f"{source} holds no text to cut into documents")
    return found


def deal(found: list[Item], split: Split) -> list[Item]:
    """Return the items of one split, dealt by position: of every five, the first tests, the second validates."""
    turn = {"test": (0,), "validation": (1,), "train": (2, 3, 4)}[split]
    return [item for number, item in enumerate(found) if number % 5 in turn]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _articles(text: str) -> list[str]:
    starts = [found.start() for found in _HEADING.finditer(text)]
    ends = [*starts[1:], len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _whole(text: str) -> list[str]:
    return [text.strip()] if text.strip() else []


_CUTS: dict[str, Callable[[str], list[str]]] = {
    "line": _lines,
    "paragraph": _paragraphs,
    "article": _articles,
    "file": _whole,
}
