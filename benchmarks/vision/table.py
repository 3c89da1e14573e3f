"""Writes the table of docs/scales.md from the committed result: python -m benchmarks.vision.table"""

from __future__ import annotations

from benchmarks.guides import Guide, measured, read

WAYS = {"plain": "plain", "repvgg": "`qarepvgg:norms=each` (RepVGG)", "qarepvgg": "`qarepvgg`",
        "rep-optimizer": "`rep-optimizer`"}  # fmt: skip
ROUNDED = ("int8", "int8, whole range", "yolov6-qat")


def branches() -> str:
    """Return the accuracy of networks by how they trained, and what rounding changes."""
    if not measured("vision_branches"):
        return "No figures are committed yet.\n"
    found = read("vision_branches")["results"]["summary"]
    lines = ["| trained | float | `int8-static` | `ranges=minmax` | `yolov6-qat` |", "|---|---|---|---|---|"]
    for name, said in WAYS.items():
        cells = [f"{found[name]['mean']:.3f}"]
        for kind in ROUNDED:
            row = found[f"{name} {kind}"]
            cells.append(f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


GUIDE = Guide("scales", {"branches": branches})

if __name__ == "__main__":
    GUIDE.write()
