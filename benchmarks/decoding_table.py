"""Writes the tables of docs/decoding.md from the committed results: python benchmarks/decoding_table.py"""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "decoding.md"
MARKS = re.compile(r"(<!-- (copying|batches):begin -->\n).*?(<!-- \2:end -->)", re.DOTALL)
SETS = {
    "edit": "light edits",
    "mt_turn2": "MT-Redundant, turn 2",
    "mt_turn1": "MT-Redundant, turn 1",
    "open": "open questions",
    "humaneval": "HumanEval",
}
MODES = {
    "lookup": "prompt lookup",
    "assisted": "assisted",
    "plain_packed": "plain, packed weights",
    "lessen_stock": "lessen, stock kernels",
    "lessen": "lessen",
}


def copying() -> str:
    """Return the speed-ups over plain `generate`, total processor time, with 95 % intervals."""
    summary = json.loads((HERE / "results" / "decoding_copying.json").read_text())["summary"]
    lines = [f"| prompts | {' | '.join(MODES.values())} | identical |", f"|---{'|---' * (len(MODES) + 1)}|"]
    for name, label in SETS.items():
        if name not in summary:
            continue
        cells = []
        for mode in MODES:
            found = summary[name].get(mode)
            cells.append(
                "-" if found is None else f"{found['cpu'][0]:.2f} [{found['cpu'][1]:.2f}, {found['cpu'][2]:.2f}]"
            )
        own = summary[name]["lessen"]
        lines.append(f"| {label} ({own['prompts']}) | {' | '.join(cells)} | {own['identical']}/{own['prompts']} |")
    return "\n".join(lines) + "\n"


def batches() -> str:
    """Return the throughput of unpadded batches over other ways, total processor time."""
    summary = json.loads((HERE / "results" / "decoding_batches.json").read_text())["summary"]
    lines = [
        "| batch, drafts | over padding the same drafts | over plain batched `generate` | rows saved |",
        "|---|---|---|---|",
    ]
    for name, found in sorted(summary.items()):
        ratios = [found["throughput_over"][other]["cpu"] for other in ("padded", "plain")]
        cells = " | ".join(f"{low[0]:.2f} [{low[1]:.2f}, {low[2]:.2f}]" for low in ratios)
        lines.append(f"| {name.replace(' ', ', ')} | {cells} | {found['rows_saved']:.0%} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page with fresh tables."""
    tables = {"copying": copying, "batches": batches}
    return MARKS.sub(lambda found: found[1] + tables[found[2]]() + found[3], text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
