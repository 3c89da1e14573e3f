"""Rows that cannot be read: gathered over a pass, so that one run names every kind, or left out up to a number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lessen.errors import DataError

MOST_KINDS = 12
"""Different kinds of fault after which gathering stops."""
SHOWN = 8


class RowError(DataError):
    """A row of a file that cannot be taken; `kind` tells faults apart that differ in more than line and value."""

    def __init__(self, path: Path, line: int, column: str | None, what: str, kind: str) -> None:
        where = f"{path}, line {line}" + (f", column {column!r}" if column is not None else "")
        super().__init__(f"{where}: {what}")
        self.kind = (str(path), column or "", kind)


@dataclass
class Faults:
    """What was found wrong with rows in one pass over the files."""

    allowed: int = 0
    """Bad rows that may be left out; 0 gathers them and refuses at the end."""
    count: int = 0
    kinds: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def add(self, error: RowError, rows: int = 1) -> None:
        """Take in one kind of fault on `rows` rows, `error` being the first. Raises DataError: more than enough."""
        self.count += rows
        self.kinds[error.kind] += rows
        self.examples.setdefault(error.kind, str(error))
        if (self.allowed and self.count > self.allowed) or len(self.kinds) >= MOST_KINDS:
            self.check(whole=False)

    def check(self, whole: bool = True) -> None:
        """Raise DataError if there are more bad rows than allowed; `whole` says that all files were read."""
        if self.count <= self.allowed:
            return
        if self.count == 1 and whole:
            raise DataError(f"{self.lines()[0]} (the only bad row; --skip-bad 1 leaves it out)")
        more = "" if whole else ", reading stopped there"
        allowed = f", {self.allowed:,} are allowed" if self.allowed else ""
        raise DataError(
            f"{'; '.join(self.lines())} - {self.count:,} bad rows in all{more}{allowed}; repair them, or leave up to "
            "N of them out with --skip-bad N"
        )

    def lines(self) -> list[str]:
        """Return one line a kind: its first example and how many more there are."""
        result = []
        for kind, rows in list(self.kinds.items())[:SHOWN]:
            more = f" ({rows - 1:,} more like it)" if rows > 1 else ""
            result.append(self.examples[kind] + more)
        if len(self.kinds) > SHOWN:
            result.append(f"and {len(self.kinds) - SHOWN} other kinds")
        return result
