"""Writes the table of docs/verdicts.md from the committed coverage study.

python -m benchmarks.verdict.table
"""

from __future__ import annotations

from typing import Any

from benchmarks.guides import Guide, read

SEEDS = (1, 2, 3, 5, 10, 20)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _cell(row: dict[str, Any]) -> str:
    return f"{100 * row['covered']:.1f} / {100 * row['within']:.1f}"


def coverage() -> str:
    """Return, for each metric and ratio, coverage and false "within margin" in per cent by the number of seeds."""
    rows = [row for row in read("verdict_coverage")["rows"] if row["ratio"] != "few"]
    lines = [f"| metric | ratio | {' | '.join(_seeds(k) for k in SEEDS)} |", f"|---|---|{'---:|' * len(SEEDS)}"]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        for ratio in dict.fromkeys(row["ratio"] for row in rows):
            found = {row["seeds"]: row for row in rows if (row["metric"], row["ratio"]) == (metric, ratio)}
            lines.append(f"| {metric} | {ratio} | {' | '.join(_cell(found[k]) for k in SEEDS)} |")
    return "\n".join(lines) + "\n"


def few() -> str:
    """Return the same of small and lumpy test sets, and how often no verdict was given."""
    rows = [row for row in read("verdict_coverage")["rows"] if row["ratio"] == "few"]
    lines = ["| test set | 1 seed | 2 seeds | 3 seeds | no verdict, 1 seed |", "|---|---:|---:|---:|---:|"]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        found = {row["seeds"]: row for row in rows if row["metric"] == metric}
        cells = [_cell(found[k]) for k in (1, 2, 3)]
        lines.append(f"| {metric} | {' | '.join(cells)} | {100 * found[1]['unknown']:.1f} |")
    return "\n".join(lines) + "\n"


def bounded() -> str:
    """Return coverage in per cent where no outcomes were kept, over all metrics and ratios: the least."""
    rows = [row for row in read("verdict_coverage")["rows"] if isinstance(row["ratio"], (int, float))]
    least = {k: min(row["bounded"] for row in rows if row["seeds"] == k) for k in SEEDS}
    heads, cells = " | ".join(_seeds(k) for k in SEEDS), " | ".join(f"{100 * least[k]:.1f}" for k in SEEDS)
    return f"| | {heads} |\n|---|{'---:|' * len(SEEDS)}\n| least coverage | {cells} |\n"


GUIDE = Guide("verdicts", {"coverage": coverage, "few": few, "bounded": bounded})

if __name__ == "__main__":
    GUIDE.write()
