"""The report as one HTML file that needs no network: styles, script and data are inside, and nothing else may run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lessen.files import finite
from lessen.frontier import Frontier, Point
from lessen.frontier.verdict import Difference
from lessen.report import content, wording
from lessen.report.markdown import context
from lessen.report.plot import picture

RAW_LIMIT = 3 << 20
"""Raw measurements above this many bytes stay out of the page, which then names their file."""


def page(frontier: Frontier, cards: Mapping[str, str] | None = None) -> str:
    """Return the whole page as HTML.

    Args:
        cards: addresses of report cards, by a recipe's label.

    Every text is escaped by the template; the content policy names the digests of the one style sheet and the
    one script, so that a name carrying markup could not run even if it got through.
    """
    style, script = asset("page.css"), asset("page.js")
    environment = Environment(
        loader=PackageLoader("lessen.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    raw, raw_note = _raw(frontier)
    return environment.get_template("page.html.jinja").render(
        **context(frontier),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest_of(style)}'; "
        f"script-src 'sha256-{digest_of(script)}'; base-uri 'none'; form-action 'none'",
        data=script_json(plot_data(frontier)),
        raw=raw,
        raw_note=raw_note,
        picture=base64.b64encode(picture(frontier, "png")).decode(),
        recipes=content.recipes_yaml(frontier),
        tally=wording.tally(frontier),
        margin=f"{frontier.margin:g}",
        cards=cards or {},
    )


def plot_data(frontier: Frontier) -> dict[str, Any]:
    """Return what the script draws: points, axes, margin and budget lines."""
    metrics = list(dict.fromkeys(name for point in frontier.measured for name in point.difference))
    return {
        "margin": frontier.margin,
        "decimals": wording.decimals_for(frontier.margin),
        "primary": frontier.primary,
        "metrics": {name: frontier.title(name) for name in metrics},
        "costs": {kind.name: kind.title for kind in frontier.costs},
        "moreIsBetter": [kind.name for kind in frontier.costs if kind.more_is_better],
        "gates": [
            {"name": gate.name, "limit": gate.limit, "relative": gate.relative, "text": gate.text}
            for gate in frontier.gates
        ],
        "points": [_plot_point(point) for point in frontier.measured],
    }


def script_json(value: Any) -> Markup:
    """Return JSON that is safe inside a script element: no character in it can end the element."""
    text = json.dumps(finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def unbroken(text: str) -> str:
    """Return `text` with spaces that hold a number to its unit, and an interval together, made non-breaking."""
    text = re.sub(r"(?<=\d) (?=(?:%|[kMGT]?B|ms|s)\b|%)", "\u00a0", text)
    return re.sub(r"\[[^\]]*\]", lambda match: match.group().replace(" ", "\u00a0"), text)


def _plot_point(point: Point) -> dict[str, Any]:
    return {
        "label": point.label,
        "families": list(point.families),
        "verdict": point.verdict,
        "reason": point.judgement.reason,
        "flags": list(point.flags),
        "seeds": len(point.seeds),
        "curve": point.curve,
        "accepted": content.accepted(point),
        "axes": {
            name: {
                "x": point.axis(name),
                "after": wording.amount(name, point.cost[name].mean),
                "before": wording.amount(name, point.reference_cost[name].mean)
                if name in point.reference_cost
                else None,
                "ends": point.latency_interval if name == "latency_ratio" else None,
                "reference": point.reference_cost[name].mean if name in point.reference_cost else None,
                "relative": name in point.share,
            }
            for name in point.cost
        },
        "differences": {name: _change(change) for name, change in point.difference.items()},
    }


def _change(change: Difference) -> dict[str, Any]:
    return {
        "value": change.value,
        "low": change.low,
        "high": change.high,
        "up": change.higher_is_better,
        "seeds": list(change.per_seed),
        "source": change.source,
    }


def _raw(frontier: Frontier) -> tuple[Markup | None, str]:
    records = [record for study in frontier.studies for record in study.records]
    text = script_json(records)
    if len(text) > RAW_LIMIT:
        return None, f"{len(records)} measurements are too many to embed; they are in measurements.jsonl."
    return text, f"{len(records)} measurements, one for each recipe and seed, are embedded in this file."


def asset(name: str) -> str:
    """Return a style sheet or script of this package."""
    return files("lessen.report").joinpath(name).read_text(encoding="utf-8")


def digest_of(text: str) -> str:
    """Return the digest by which a content policy allows a style sheet or script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
