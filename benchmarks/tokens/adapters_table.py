"""Writes the tables of docs/visual-video.md on trained adapters: python -m benchmarks.tokens.adapters_table."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.guides import Guide, read

KINDS = ("what", "colour", "row", "column", "count", "exists", "side")
PARTS = {"places": KINDS[:4], "others": KINDS[4:]}
STUDENT = {16: 2.13, 30: 2.05}
"""97.5 % points of Student's distribution by the number of groups of pictures."""
PAIRS = (
    ("hires-llava", "uniform pooling"), ("hires-llava", "hires-llava, no adapters"), ("hires-llava", "learned queries"),
    ("hires-llava", "all tokens"), ("slime", "slime, no mixture"), ("slime", "uniform pooling"),
    ("adem-vl", "one mean token"),
)  # fmt: skip
LATER = ("slime", ("half by the words", "half by chance"))


def by_group(right: dict[str, list[list[int]]], kinds: tuple[str, ...]) -> np.ndarray:
    """Return the share of right answers in each group of pictures."""
    counts = np.sum([right[kind] for kind in kinds], 0)
    found: np.ndarray = counts[:, 0] / counts[:, 1]
    return found


def told(values: np.ndarray) -> str:
    """Return mean and 95 % interval in per cent of [seeds, groups], over groups of pictures."""
    own = 100 * values.mean(0)
    half = STUDENT[len(own)] * own.std(ddof=1) / len(own) ** 0.5
    return f"{own.mean():.1f} [{own.mean() - half:.1f}, {own.mean() + half:.1f}]"


def runs() -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Return the runs of each (pictures, arm, steps)."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in sorted(read("tokens_adapters")["rows"], key=lambda row: (row["pictures"], row["steps"], row["seed"])):
        found.setdefault((row["pictures"], row["arm"], row["steps"]), []).append(row)
    return found


def adapters() -> str:
    """Return what every arm answers and costs."""
    lines = [
        "| | steps | seeds | visual tokens | decoder, M | before it, M | places, % | others, % | "
        + " | ".join(KINDS) + " |",
        "|---" * (8 + len(KINDS)) + "|",
    ]  # fmt: skip

    def line(name: str, steps: int, tokens: float, macs: tuple[str, str], rights: list[dict[str, Any]]) -> None:
        cells = [name, str(steps) if steps else "-", str(len(rights)), f"{tokens:.0f}", *macs]
        cells += [told(np.stack([by_group(right, kinds) for right in rights])) for kinds in PARTS.values()]
        cells += [f"{100 * np.mean([by_group(right, (kind,)).mean() for right in rights]):.0f}" for kind in KINDS]
        lines.append(f"| {' | '.join(cells)} |")

    for (pictures, arm, steps), rows in runs().items():
        macs = f"{rows[0]['macs_decoder'] / 1e6:.0f}", f"{rows[0]['macs_before'] / 1e6:.1f}"
        line(f"{pictures}: {arm}", steps, rows[0]["tokens"], macs, [row["right"] for row in rows])
        if arm == LATER[0]:
            for way in LATER[1]:
                some = [row["chosen"][way] for row in rows]
                shown = rows[0]["tokens"] - rows[0]["chosen"]["all"]["tiles"] + some[0]["tiles"]
                line(f"{pictures}: {arm}, {way}", steps, shown, ("-", "-"), [one["right"] for one in some])
    return "\n".join(lines) + "\n"


def paired() -> str:
    """Return each adapter against what it is compared with, the same steps, paired by seed and pictures."""
    lines = ["| | places, points | others, points | all, by seed |", "|---|---|---|---|"]
    found = runs()
    for name, other in PAIRS:
        for pictures, arm, steps in found:
            control = found.get((pictures, other, steps))
            if arm != name or control is None:
                continue
            both = list(zip(found[pictures, arm, steps], control, strict=True))
            cells = [
                told(np.stack([by_group(a["right"], kinds) - by_group(b["right"], kinds) for a, b in both]))
                for kinds in PARTS.values()
            ]
            seeds = [float((by_group(a["right"], KINDS) - by_group(b["right"], KINDS)).mean()) for a, b in both]
            shown = ", ".join(f"{100 * value:+.1f}" for value in seeds)
            lines.append(f"| {name} over {other}, {steps} steps | {' | '.join(cells)} | {shown} |")
    return "\n".join(lines) + "\n"


GUIDE = Guide("visual-video", {"video-adapters": adapters, "video-adapters-paired": paired})

if __name__ == "__main__":
    GUIDE.write()
