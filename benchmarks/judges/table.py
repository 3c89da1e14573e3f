"""Writes the tables of docs/judging.md on time and on inputs from outside: python -m benchmarks.judges.table"""

from __future__ import annotations

from benchmarks.guides import Guide, read

ASPECTS = ("action", "direction", "speed")


def temporal() -> str:
    """Return right answers by aspect, mean over seeds, and of how many seeds each was caught."""
    rows = read("judges_temporal")["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [
        "| | " + " | ".join(f"{aspect}, %" for aspect in ASPECTS) + " | all copies right, % | read, % | caught |",
        "|---" * (4 + len(ASPECTS)) + "|",
    ]

    def line(name: str, at: int, caught: str) -> None:
        own = [row for row in rows if row["model"] == (name if at else models[0])]
        key = ("before", "after")[at]
        cells = [[row["aspects"][aspect][key] for row in own] for aspect in ASPECTS]
        cells += [[row[part][at] for row in own] for part in ("whole", "read")]
        means = " | ".join(f"{100 * sum(values) / len(values):.0f}" for values in cells)
        lines.append(f"| {name} | {means} | {caught} |")

    line("uncompressed", 0, "-")
    for name in models:
        own = [row for row in rows if row["model"] == name]
        counts = {what: sum(what in row["caught"] for row in own) for what in (*ASPECTS, "the")}
        told = [f"{'form' if what == 'the' else what} {n} of {len(own)}" for what, n in counts.items() if n]
        line(name, 1, ", ".join(told) or "nothing")
    return "\n".join(lines) + "\n"


def outside() -> str:
    """Return, for each score, its AUROC and what the uncompressed model's threshold lets through, by recipe."""
    found = read("judges_ood_cifar")["outside"]
    scores = list(next(iter(found["made"].values())))
    lines = ["| outside | recipe | " + " | ".join(scores) + " |", "|---" * (2 + len(scores)) + "|"]
    for kind, rows in found.items():
        for recipe, row in rows.items():
            cells = [
                f"{one['after']:.3f}; {100 * one['carried inside']:.1f} %, {100 * one['carried outside']:.1f} %"
                for one in row.values()
            ]
            lines.append(f"| {kind} | {recipe} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


GUIDE = Guide("judging", {"judging-temporal": temporal, "judging-outside": outside})

if __name__ == "__main__":
    GUIDE.write()
