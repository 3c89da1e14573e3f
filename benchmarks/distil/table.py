"""Writes the table of docs/distil.md from the committed result: python -m benchmarks.distil.table"""

from __future__ import annotations

from benchmarks.guides import Guide, measured, read

ROWS = {
    "whole": "SmolLM2-135M, thirty layers",
    "whole, 4 bits": "the same, `rtn:bits=4,group=128`",
    "cut": "ten layers, not trained",
    "labels alone": "ten layers, trained on the text alone",
    "forward kl": "ten layers, trained with the teacher",
    "forward kl, 4 bits": "the same, `rtn:bits=4,group=128`",
}


def smollm2() -> str:
    """Return perplexity, bytes and the part of the gap that training closed."""
    if not measured("distil_smollm2"):
        return "No figures are committed yet.\n"
    found = read("distil_smollm2")["results"]
    lines = ["| | perplexity | MB | of the gap, in logarithms | minutes of one core |", "|---|---|---|---|---|"]
    for name, said in ROWS.items():
        row = found[name]
        closed = f"{100 * row['gap closed']:.0f} %" if "gap closed" in row and not name.startswith("whole") else ""
        minutes = f"{row['processor seconds'] / 60:.0f}" if "processor seconds" in row else ""
        lines.append(f"| {said} | {row['perplexity']:,.1f} | {row['bytes'] / 1e6:.1f} | {closed} | {minutes} |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"


GUIDE = Guide("distil", {"smollm2": smollm2})

if __name__ == "__main__":
    GUIDE.write()
