"""Writes the tables of docs/embeddings.md from the committed results of the table studies.

python -m benchmarks.embeddings.study_table
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from benchmarks.guides import Guide, read

STUDIES = {
    "synthetic": "embeddings_synthetic",
    "ten-million": "embeddings_synthetic_10m",
    "movielens": "embeddings_movielens",
    "ten-seeds": "embeddings_movielens_ten_seeds",
}
BUDGETS = ("50", "20", "10", "5", "1", "0.1")
AT_BUDGET = re.compile(r"(.+) (50|20|10|5|1|0\.1) %")
TOLERANCE = 1.02
"""A single method may take this many times a composition's bytes and still be compared with it."""


def difference(row: dict[str, Any]) -> str:
    return f"{row['auc_difference']:+.4f} ±{(row['high'] - row['low']) / 2:.4f}"


def times(row: dict[str, Any]) -> list[str]:
    lookup = row.get("lookup_ratio")
    return [f"{row['train_seconds']:.0f}", "" if lookup is None else f"{lookup:.1f}x"]


def budgets(rows: list[dict[str, Any]]) -> str:
    """Return single methods against budgets: the best of each budget in bold, a dash where a method refuses."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        named = AT_BUDGET.fullmatch(row["recipe"])
        if named and not row["composed"]:
            cells.setdefault(named[1], {})[named[2]] = row
    columns = [budget for budget in BUDGETS if any(budget in found for found in cells.values())]
    best = {
        budget: max(found[budget].get("auc_difference", -1.0) for found in cells.values() if budget in found)
        for budget in columns
    }
    main = "10" if "10" in columns else columns[0]

    def cell(found: dict[str, dict[str, Any]], budget: str) -> str:
        if budget not in found:
            return ""
        if "refused" in found[budget]:
            return "-"
        text = difference(found[budget])
        return f"**{text}**" if found[budget]["auc_difference"] == best[budget] else text

    def order(name: str) -> float:
        return max((row.get("auc_difference", -1.0) for key, row in cells[name].items() if key == main), default=-2.0)

    heads = ["method", *(f"{budget} %" for budget in columns), f"training, s ({main} %)", f"lookup time ({main} %)"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for name in sorted(cells, key=order, reverse=True):
        found = cells[name]
        took = times(found[main]) if main in found and "share" in found[main] else ["", ""]
        lines.append(f"| {' | '.join([name, *(cell(found, budget) for budget in columns), *took])} |")
    return "\n".join(lines) + "\n"


def others(rows: list[dict[str, Any]]) -> str:
    """Return fixed sizes and compositions, largest first, and for these the best single method at their bytes."""
    done = [row for row in rows if "share" in row]
    single = [row for row in done if not row["composed"]]
    lines = [
        "| recipe | share of the bytes | AUC difference | best single method at its bytes | composing gains "
        "| training, s | lookup time |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in sorted(done, key=lambda row: -row["share"]):
        if AT_BUDGET.fullmatch(row["recipe"]) and not row["composed"]:
            continue
        against, gain = "", ""
        rivals = [other for other in single if other["share"] <= TOLERANCE * row["share"]]
        if row["composed"] and rivals:
            rival = max(rivals, key=lambda other: float(other["auc_difference"]))
            against = f"{rival['recipe']}: {rival['auc_difference']:+.4f}"
            gain = f"{row['auc_difference'] - rival['auc_difference']:+.4f}"
        name = f"**{row['recipe']}**" if gain.startswith("+") else row["recipe"]
        cells = [name, f"{100 * row['share']:.2f} %", difference(row), against, gain, *times(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def study(name: str) -> str:
    """Return both tables of one study."""
    rows = read(name)["rows"]
    return f"{budgets(rows)}\n{others(rows)}"


GUIDE = Guide("embeddings", {mark: partial(study, name) for mark, name in STUDIES.items()})

if __name__ == "__main__":
    GUIDE.write()
