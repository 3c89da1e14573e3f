"""How the commands speak: results on standard output, talk on standard error, tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from lessen.log import Log, printable

AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable results on standard output.")]
WIDE = 180
"""Columns of a table that goes to a file or a pipe."""


def say(text: str) -> None:
    """Write one line of talk to standard error."""
    sys.stderr.write(printable(" ".join(text.split())) + "\n")
    sys.stderr.flush()


class Notes(Log):
    """Remarks of short work, on standard error."""

    def note(self, text: str) -> None:
        """Say one line."""
        say(text)


def emit(value: Any) -> None:
    """Write one JSON document to standard output."""
    from lessen.files import finite

    sys.stdout.write(json.dumps(finite(value), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def line(text: str) -> None:
    """Write one line of results to standard output."""
    sys.stdout.write(printable(text) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on standard output; columns whose name starts with `>` are set flush right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        shown.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        shown.add_row(*(escape(printable(str(cell))) for cell in row))
    console.print(shown)


def size(count: float) -> str:
    """Return a number of bytes for people: 512 B, 4.1 kB, 2.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit always returns")
