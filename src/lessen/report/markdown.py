"""The report as Markdown, for pull requests and terminals: the page's words without its picture."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lessen.frontier import Frontier
from lessen.log import printable
from lessen.report import calibration, content, wording
from lessen.report.curves import curve_rows, rate_name


def markdown(frontier: Frontier) -> str:
    """Return the whole report as Markdown; names cannot break out of their cell or carry HTML."""
    environment = Environment(
        loader=PackageLoader("lessen.report", "."),
        autoescape=False,
        finalize=safe,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    recipes = content.recipes_yaml(frontier)
    text = environment.get_template("frontier.md.jinja").render(
        **context(frontier), fence=_fence(recipes), recipes=_Verbatim(recipes)
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def context(frontier: Frontier) -> dict[str, Any]:
    """Return what both layouts show."""
    rows = content.trade_rows(frontier)
    baseline_metrics, baselines = content.baseline_rows(frontier)
    calibrated = calibration.calibrations(frontier)
    return {
        "title": f"{' + '.join(study.name for study in frontier.studies)}: quality against cost",
        "headline": wording.headline(frontier),
        "summary": content.summary(frontier),
        "doubts": frontier.doubts[1:],
        "metric": frontier.title(frontier.primary),
        "cost": wording.cost_name(frontier.cost),
        "rows": rows,
        "undecided": content.undecided(frontier),
        "flagged": [(row["label"], flag) for row in rows for flag in row["flags"]],
        "gates": [gate.text for gate in frontier.gates],
        "ledger": content.ledger_rows(frontier),
        "gaps": content.gaps(frontier),
        "noise": content.noise_rows(frontier),
        "baseline_metrics": baseline_metrics,
        "baselines": baselines,
        "curves": curve_rows(frontier),
        "rate": rate_name(frontier),
        "calibration": calibration.ratio_rows(calibrated),
        "calibration_bins": calibration.bin_rows(calibrated),
        "calibration_curves": calibration.drawing(calibrated) if calibrated else None,
        "environment": content.environment_rows(frontier),
    }


class _Verbatim(str):
    """Text that goes into a code block as it is."""


def safe(value: Any) -> Any:
    """Return a value as text that cannot break out of its cell or carry HTML."""
    if isinstance(value, _Verbatim):
        return value
    text = printable(" ".join(str(value).replace("\r", " ").replace("\n", " ").split(" ")))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "\\`").replace("](", "]\\(")


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return _Verbatim("`" * max(3, longest + 1))
