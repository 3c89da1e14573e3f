"""One page for studies of several kinds of model: each keeps its own metric and cost, all share one picture.

to the right   the cost that the part is about, as a share of its reference
upwards        the loss of quality in units of the part's own margin: at most 1 is what its user accepts
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lessen.files import atomic_write
from lessen.frontier import Frontier, Point
from lessen.report import wording
from lessen.report.content import trade_rows
from lessen.report.plot import BAND, HAIR, INK, PAPER, SOFT

COLOURS = ("#0072B2", "#C4500A", "#00795C", "#B97A00", "#8A4F9E", "#56606B", "#D0417E", "#2E7F9F")
HEADS = ("part", "recipe", "verdict", "metric", "before", "after", "difference", "cost", "cost before", "cost after",
         "share", "loss in margins")  # fmt: skip


def write_joint(title: str, parts: Mapping[str, Frontier], out: Path) -> Path:
    """Write frontier.html, .md, .csv, .png and .svg of all parts into `out` and return the page.

    Raises:
        OutputError: `out` cannot be written.
    """
    rows = [row for name, frontier in parts.items() for row in _rows(name, frontier)]
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({head: row[head] for head in HEADS} for row in rows)
    atomic_write(out / "frontier.csv", text.getvalue())
    for form in ("png", "svg"):
        atomic_write(out / f"frontier.{form}", _picture(parts, form))
    said = {"title": title, "parts": [_part(name, frontier) for name, frontier in parts.items()], "rows": rows}
    atomic_write(out / "frontier.md", _rendered("joint.md.jinja", False, said))
    style = files("lessen.report").joinpath("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _rendered(
        "joint.html.jinja",
        True,
        {
            **said,
            "style": Markup(style),
            "picture": base64.b64encode(_picture(parts, "png")).decode(),
            "policy": f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; form-action 'none'",
        },
    )
    atomic_write(out / "frontier.html", page)
    return out / "frontier.html"


def _rendered(template: str, escape: bool, said: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("lessen.report", "."),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=None if escape else _cell,
    )
    return environment.get_template(template).render(**said)


def _cell(value: Any) -> str:
    text = " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "\\`")


def _part(name: str, frontier: Frontier) -> dict[str, Any]:
    return {
        "name": name,
        "task": frontier.studies[0].task_name,
        "metric": frontier.title(frontier.primary),
        "cost": wording.cost_name(frontier.cost),
        "margin": f"{frontier.margin:g}",
        "headline": wording.headline(frontier),
        "doubts": frontier.doubts,
    }


def _rows(name: str, frontier: Frontier) -> list[dict[str, Any]]:
    points = {point.label: point for point in frontier}
    found = []
    for row in trade_rows(frontier):
        cost = row["costs"].get(frontier.cost, {"before": "–", "after": "–", "share": "–"})
        place = _place(points[row["label"]], frontier)
        found.append(
            {
                "part": name,
                "recipe": row["label"],
                "verdict": row["verdict"],
                "reason": row["reason"],
                "metric": frontier.title(frontier.primary),
                "before": row["before"],
                "after": row["after"],
                "difference": row["difference"],
                "cost": wording.cost_name(frontier.cost),
                "cost before": cost["before"],
                "cost after": cost["after"],
                "share": cost["share"],
                "latency": row["latency"],
                "loss in margins": "" if place is None else f"{place[1]:.2f}",
            }
        )
    return found


def _place(point: Point, frontier: Frontier) -> tuple[float, float, float, float] | None:
    """Return share of the cost, loss in margins and the ends of its interval, or None where one was not measured."""
    price, difference = point.axis(frontier.cost), point.difference.get(frontier.primary)
    if price is None or difference is None:
        return None
    value, low, high = difference.loss
    ends = (value if low is None else low, value if high is None else high)
    return price, value / frontier.margin, ends[0] / frontier.margin, ends[1] / frontier.margin


def _picture(parts: Mapping[str, Frontier], form: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "svg.hashsalt": "lessen",
        "text.parse_math": False,
        "axes.edgecolor": HAIR,
        "text.color": INK,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
    }
    target = io.BytesIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9.0, 5.4), dpi=200, facecolor=PAPER)
        FigureCanvasAgg(figure)
        _draw(figure.add_axes((0.075, 0.115, 0.9, 0.83)), parts)
        figure.savefig(target, format=form, metadata={"Date": None} if form == "svg" else {"Software": None})
    return target.getvalue()


def _draw(axes: Any, parts: Mapping[str, Frontier]) -> None:
    axes.axhspan(-1e6, 1.0, color=BAND, zorder=0)
    axes.axhline(1.0, color=SOFT, lw=0.8, ls=(0, (4, 3)))
    axes.plot([1.0], [0.0], marker="s", ms=7, mfc=PAPER, mec=INK, ls="none", label="uncompressed", zorder=4)
    shares, losses = [1.0], [0.0, 1.5]
    for (name, frontier), colour in zip(parts.items(), _cycled(COLOURS, len(parts)), strict=True):
        placed = [(point, place) for point in frontier.measured if (place := _place(point, frontier)) is not None]
        _draw_curves(axes, [(point, place) for point, place in placed if point.curve], colour)
        for number, (point, (price, loss, low, high)) in enumerate(placed):
            axes.errorbar(
                [price],
                [loss],
                yerr=[[loss - low], [high - loss]],
                fmt="o",
                color=colour,
                ms=6,
                lw=1.0,
                label=name if not number else None,
                zorder=3,
            )
            axes.annotate(point.label, (price, loss), (6, 5), textcoords="offset points", size=7.6, color=colour)
            shares.append(price)
            losses += [low, high]
    axes.set_xscale("log")
    low, high = min(shares), max(shares)
    axes.set_xlim(low / 1.4, high * 1.9)
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if low / 1.4 <= tick <= high * 1.9]
    axes.set_xticks(ticks, [wording.share(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yscale("asinh", linear_width=2.0)
    bottom, top = max(losses) * 1.3 + 0.5, min(losses) * 1.3 - 0.5
    axes.set_ylim(bottom, top)
    marks = [sign * mark for mark in (100, 50, 20, 10, 5, 2, 1, 0) for sign in (-1, 1) if top <= sign * mark <= bottom]
    axes.set_yticks(sorted(set(marks)), [wording.signed(mark, 0) if mark else "0" for mark in sorted(set(marks))])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("the part's own cost, share of its uncompressed model", color=SOFT)
    axes.set_ylabel("loss of quality in margins, better upwards", color=SOFT)
    axes.grid(axis="both", color=HAIR, lw=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _draw_curves(axes: Any, placed: Sequence[tuple[Point, tuple[float, ...]]], colour: str) -> None:
    for curve in dict.fromkeys(point.curve for point, _ in placed):
        line = sorted(place[:2] for point, place in placed if point.curve == curve)
        axes.plot([share for share, _ in line], [loss for _, loss in line], color=colour, lw=1.2, alpha=0.6, zorder=2)


def _cycled(items: Sequence[str], count: int) -> list[str]:
    return [items[number % len(items)] for number in range(count)]
