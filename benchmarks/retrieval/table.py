"""Tables of docs/retrieval.md: what methods of this room find beside baselines and controls.

python -m benchmarks.retrieval.table
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.guides import Guide, read


def share(found: list[float]) -> str:
    """A mean and its interval."""
    mean, low, high = found
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def change(found: list[float]) -> str:
    """A difference and its interval, with signs."""
    mean, low, high = found
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def rows(head: str, lines: list[str]) -> str:
    """A table of Markdown."""
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *lines]) + "\n"


def compared(name: str, part: str, value: str, over: str, said: str) -> Callable[[], str]:
    """Return what writes the rows of one result: a mean, and the difference from a row that is named."""

    def table() -> str:
        found: dict[str, Any] = read(name)[part]["rows"]
        lines = [f"| {row} | {share(each[value])} | {change(each[over])} |" for row, each in found.items()]
        return rows(said, lines)

    return table


TABLES: dict[str, Callable[[], str]] = {
    "towers": compared(
        "retrieval_towers", "study", "pck", "over_the_better_tower", "| features | PCK@0.1 | over gradients alone |"
    ),
}
GUIDE = Guide("retrieval", TABLES)


if __name__ == "__main__":
    GUIDE.write()
