"""Writes the table of docs/series.md from the committed results: python -m benchmarks.series.table"""

from __future__ import annotations

from benchmarks.guides import Guide, read


def measured() -> str:
    """Return accuracy, channels and time of each set beside what is published and MiniRocket."""
    lines = [
        "| set | accuracy | published method | MiniRocket | channels read | time over MiniRocket's |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in read("series_lightwaves")["rows"].items():
        used, of = row["channels"]
        lines.append(
            f"| {name} | {row['accuracy']:.3f} | {row['port']:.3f} | {row['minirocket_accuracy']:.3f} "
            f"| {used} of {of} | {row['time_ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


GUIDE = Guide("series", {"measured": measured})

if __name__ == "__main__":
    GUIDE.write()
