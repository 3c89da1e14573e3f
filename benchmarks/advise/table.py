"""Writes the table of docs/advise.md from the committed results: python -m benchmarks.advise.table"""

from __future__ import annotations

import numpy as np

from benchmarks.guides import Guide, measured, read


def forecasts() -> str:
    """Return, for each model, how many forecasts of bytes were exact and how far times were off."""
    if not measured("advise_forecasts"):
        return "No figures are committed yet.\n"
    result = read("advise_forecasts")
    lines = [
        "| model | recipes | bytes equal | error of the time: median | nine of ten within | rank correlation |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    within = result["summary"]["rank_correlation_within"]
    for name, rows in result["models"].items():
        errors = [abs(row["ratio_forecast"] / row["ratio"] - 1) for row in rows]
        equal = sum(row["bytes_forecast"] == row["bytes_written"] for row in rows)
        middle, most = 100 * np.median(errors), 100 * np.quantile(errors, 0.9)
        lines.append(f"| {name} | {len(rows)} | {equal} | {middle:.0f} % | {most:.0f} % | {within[name]:.2f} |")
    told = result["summary"]
    lines.append(
        f"| all | {told['recipes']} | {told['bytes_equal']} | {100 * told['median_error']:.0f} % "
        f"| {100 * told['nine_of_ten_within']:.0f} % | {told['rank_correlation']:.3f} |"
    )
    return "\n".join(lines) + "\n"


GUIDE = Guide("advise", {"forecasts": forecasts})

if __name__ == "__main__":
    GUIDE.write()
