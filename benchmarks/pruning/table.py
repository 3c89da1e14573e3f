"""The tables of docs/pruning.md, from the committed results: python -m benchmarks.pruning.table"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmarks.guides import Guide, measured, read


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name} ci"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def _place(title: str) -> tuple[bool, float, str]:
    """Return where a row stands: the whole model first, larger sizes before smaller ones, by name."""
    said = re.search(r"(\d+)%", title)
    return title != "whole", -float(said[1]) if said else 0.0, title


def judged(host: str, name: str) -> Callable[[], str]:
    """Return what writes the rows of a host: shares, size, the metric and what it lost, by unit."""

    def table() -> str:
        lines = [f"| row | multiply-adds | parameters | {name} | lost, points |", "|---|---|---|---|---|"]
        whole = read(f"pruning_{host}")["rows"]["whole"]["parameters"]
        for title, row in sorted(read(f"pruning_{host}")["rows"].items(), key=lambda one: _place(one[0])):
            lost, low, high = (100 * value for value in row[f"{name} lost"])
            share = "1" if row.get("share") is None else f"{row['share']['macs']:.3f}"
            size = f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] > 200_000 else f"{row['parameters']:,}"
            if re.search("int8|rtn", title):  # codes are no parameters
                size = f"{row['share']['parameters'] * whole / 1e6:.1f} M in {row['bytes'] / 1e6:.1f} MB"
            lines.append(
                f"| {title} | {share} | {size} | {_interval(row, name)} | {lost:.1f} [{low:.1f}, {high:.1f}] |"
            )
        return "\n".join(lines) + "\n"

    return table


def perplexity() -> str:
    """Return SmolLM2's rows: parameters, minutes of the processor that the recipe took, perplexity and its rise."""
    lines = ["| row | parameters | minutes | perplexity | rise |", "|---|---|---|---|---|"]
    for title, row in read("pruning_smollm2")["rows"].items():
        minutes = f"{row['cpu_s'] / 60:.1f}" if "cpu_s" in row else ""
        low, high = row["rise ci"]
        rise = f"{row['rise']:.1f} [{low:.1f}, {high:.1f}]" if minutes else ""
        lines.append(f"| {title} | {row['parameters'] / 1e6:.1f} M | {minutes} | {row['perplexity']:.1f} | {rise} |")
    return "\n".join(lines) + "\n"


def peer() -> str:
    """Return what Torch-Pruning leaves beside ours at equal sizes."""
    lines = ["| model | row | multiply-adds | what is left |", "|---|---|---|---|"]
    for host, name in (("cifar", "accuracy"), ("minilm", "recall@1"), ("smollm2", "perplexity")):
        if not measured(f"pruning_peer_{host}"):
            continue
        for title, row in read(f"pruning_peer_{host}")["rows"].items():
            who = title if title.startswith("ours") else f"Torch-Pruning, {title}"
            lines.append(f"| {host} | {who} | {row['share']:.3f} | {name} {_interval(row, name)} |")
    return "\n".join(lines) + "\n"


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
        "pruning-smollm2": perplexity,
        "pruning-peer": peer,
        "pruning-speed": speed,
    },
)

if __name__ == "__main__":
    GUIDE.write()
