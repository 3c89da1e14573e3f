"""The tables of docs/pruning.md, from the committed results: python -m benchmarks.pruning.table"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.guides import Guide, read


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name} ci"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def judged(host: str, name: str) -> Callable[[], str]:
    """Return what writes the rows of a host: shares, size, the metric and what it lost, by unit."""

    def table() -> str:
        lines = [f"| row | multiply-adds | parameters | {name} | lost, points |", "|---|---|---|---|---|"]
        for title, row in read(f"pruning_{host}")["rows"].items():
            lost, low, high = (100 * value for value in row[f"{name} lost"])
            share = "1" if row.get("share") is None else f"{row['share']['macs']:.3f}"
            size = f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] > 200_000 else f"{row['parameters']:,}"
            lines.append(
                f"| {title} | {share} | {size} | {_interval(row, name)} | {lost:.1f} [{low:.1f}, {high:.1f}] |"
            )
        return "\n".join(lines) + "\n"

    return table


def speed() -> str:
    """Return how much faster pruned models are, beside what they save."""
    lines = ["| row | fewer multiply-adds | faster | of it |", "|---|---|---|---|"]
    for name, row in read("pruning_speed")["rows"].items():
        low, high = row["ci"]
        lines.append(
            f"| {name} | {row['fewer multiply-adds']:.2f}x | {row['faster']:.2f}x [{low:.2f}, {high:.2f}] | "
            f"{row['of it']:.2f} |"
        )
    return "\n".join(lines) + "\n"


GUIDE = Guide(
    "pruning",
    {
        "pruning-colours": judged("colours", "accuracy"),
        "pruning-cifar": judged("cifar", "accuracy"),
        "pruning-minilm": judged("minilm", "recall@1"),
        "pruning-speed": speed,
    },
)

if __name__ == "__main__":
    GUIDE.write()
