"""A frontier as a small table for notebooks; the full report is a page of its own."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from lessen.frontier.point import Point


def html_table(points: Iterable[Point], primary: str, title: str) -> str:
    """Return one row a recipe: verdict, difference of the metric `primary` and its interval, bytes, latency."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("recipe", "verdict", title, "stored bytes", "latency"))
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(point, primary))}</tr>" for point in points
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cells(point: Point, primary: str) -> tuple[str, ...]:
    if point.failed:
        return (point.label, "failed", "", "", "")
    change, size, latency = point.difference.get(primary), point.axis("stored_bytes"), point.axis("latency_ratio")
    return (
        point.label,
        point.verdict,
        f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]" if change else "",
        f"{size:.3f}x" if size is not None else "",
        f"{latency:.3f}x" if latency is not None else "",
    )
