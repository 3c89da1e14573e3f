"""The frontier as CSV, one row a recipe, for spreadsheets and scripts; figures unrounded, units in the names."""

from __future__ import annotations

import csv
import io
from typing import Any

from lessen.costs import CostKind, cost_kinds
from lessen.frontier import Frontier, Point
from lessen.log import printable


def rows(frontier: Frontier) -> list[dict[str, Any]]:
    """Return flat rows: text, numbers or None; `share` columns are relative to the reference of the same seed."""
    on_front = {point.label for point in frontier.front()}
    metrics = list(dict.fromkeys(name for point in frontier.measured for name in point.quality))
    measured = {kind.name for kind in frontier.costs}
    costs = [kind for kind in cost_kinds(sorted(measured)) if kind.core or kind.name in measured]
    return [_row(point, metrics, costs, point.label in on_front) for point in frontier]


def csv_text(frontier: Frontier) -> str:
    """Return the rows as CSV with a header; text that a spreadsheet would run as a formula is quoted away."""
    found = rows(frontier)
    target = io.StringIO()
    writer = csv.DictWriter(target, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in found)
    return target.getvalue()


def _row(point: Point, metrics: list[str], costs: list[CostKind], on_front: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "study": point.study,
        "recipe": point.recipe,
        "recipe_hash": point.recipe_hash,
        "families": " ".join(point.families),
        "seeds": len(point.seeds),
        "failed_seeds": len(point.errors),
        "verdict": "failed" if point.failed else point.verdict,
        "on_front": on_front,
        "gates_held": all(point.gates.values()) if point.gates and not point.failed else None,
        "flags": "; ".join(point.flags),
    }
    for name in metrics:
        before, after, change = point.reference_quality.get(name), point.quality.get(name), point.difference.get(name)
        row[f"{name}_reference"] = before.mean if before else None
        row[name] = after.mean if after else None
        row[f"{name}_seed_sd"] = after.spread if after else None
        row[f"{name}_difference"] = change.value if change else None
        row[f"{name}_difference_low"] = change.low if change else None
        row[f"{name}_difference_high"] = change.high if change else None
    for kind in costs:
        cost, share = point.cost.get(kind.name), point.share.get(kind.name)
        row[kind.name] = cost.mean if cost else None
        if kind.relative:
            row[f"{kind.name}_share"] = share.mean if share else None
    row["latency_ratio_low"], row["latency_ratio_high"] = point.latency_interval or (None, None)
    return row


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.8g}"
    text = printable(str(value))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not isinstance(value, int) else text
