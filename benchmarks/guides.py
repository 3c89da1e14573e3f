"""The committed results, and the tables of docs/ that are made of them.

A `table.py` declares one `GUIDE`: a page and the function that writes each of its tables. The page marks a table's
place with `<!-- NAME:begin -->` and `<!-- NAME:end -->`; `tests/benchmarks/test_result_pages.py` fails where
they differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    """Return one committed result."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def placed(case: str, machine: str | None) -> str:
    """Return the key of a case in a result that holds several machines: the first one's has no name."""
    return case if machine is None else f"{case}, {machine}"


def measured(name: str) -> bool:
    """Tell whether a result is committed; a table without one says by which command it is made."""
    return (RESULTS / f"{name}.json").is_file()


@dataclass(frozen=True)
class Guide:
    """A page of docs/ and, by the names of their marks, the functions that return its tables as Markdown."""

    name: str
    tables: Mapping[str, Callable[[], str]]

    @property
    def path(self) -> Path:
        return ROOT / "docs" / f"{self.name}.md"

    def renewed(self, text: str) -> str:
        """Return the page's text with every table made anew; SystemExit where a table has not exactly one place."""
        for name, table in self.tables.items():
            place = re.compile(f"(?<=<!-- {name}:begin -->\\n).*?(?=<!-- {name}:end -->)", re.DOTALL)
            found = list(place.finditer(text))
            if len(found) != 1:
                raise SystemExit(
                    f"docs/{self.name}.md must mark one place for the table {name!r}: "
                    f"<!-- {name}:begin --> and, on a later line, <!-- {name}:end -->"
                )
            text = text[: found[0].start()] + table() + text[found[0].end() :]
        return text

    def write(self) -> None:
        """Write the page with fresh tables."""
        self.path.write_text(self.renewed(self.path.read_text()))
