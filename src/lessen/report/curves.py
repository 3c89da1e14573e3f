"""Codecs in the report: the rates of one codec are one curve, and two curves are compared by their BD-rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lessen.costs import STORED
from lessen.errors import TaskError
from lessen.frontier import Frontier, Point
from lessen.metrics.images import bd_rate
from lessen.report import wording

RATE = "bits-per-pixel"
"""Name of the metric that is the rate where a study has it; else the stored bytes are."""


def curves(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return the measured points of each curve, by its name."""
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.curve is not None and not point.failed:
            found.setdefault(point.curve, []).append(point)
    return found


def curve_rows(frontier: Frontier) -> list[list[str]]:
    """Return one row a curve after the first: its name, the first's, and how much more rate it takes, or why not."""
    found = curves(frontier.measured)
    if len(found) < 2:
        return []
    first, *others = found
    rows = []
    for name in others:
        try:
            share = bd_rate(*_places(frontier, found[first]), *_places(frontier, found[name]))
            told = f"{wording.signed(100 * share, 1)} %"
        except TaskError as error:
            told = str(error)
        rows.append([name, first, told])
    return rows


def rate_name(frontier: Frontier) -> str:
    """Return what the rate of this study is, in words."""
    return frontier.title(RATE) if any(RATE in point.quality for point in frontier.measured) else STORED.title


def _places(frontier: Frontier, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """Return rates and qualities of a curve, [points] each; a quality of which less is better is turned."""
    rates, qualities = [], []
    for point in points:
        rate = point.quality.get(RATE) or point.cost.get(STORED.name)
        quality, change = point.quality.get(frontier.primary), point.difference.get(frontier.primary)
        if rate is not None and quality is not None:
            rates.append(rate.mean)
            qualities.append(quality.mean if change is None or change.higher_is_better else -quality.mean)
    return np.array(rates), np.array(qualities)
