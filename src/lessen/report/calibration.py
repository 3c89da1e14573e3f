"""Calibration in the report: expected against observed clicks, overall and by predicted probability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lessen.errors import TaskError
from lessen.frontier import Frontier
from lessen.frontier.records import REFERENCE, StudyRecords
from lessen.metrics import LOGLOSS, CalibrationBin, calibration_bins, calibration_error

BINS = 10
CURVES = 4
"""Models whose curves are drawn and whose bins are listed: the reference, then recipes on the front."""
SIDE, EDGE = 220.0, 34.0
"""Of the drawing, in its own units."""


@dataclass(frozen=True)
class Calibration:
    """One model on the test split: expected positives over observed ones with its 95 % interval, and its bins."""

    label: str
    ratio: float
    low: float
    high: float
    error: float
    bins: tuple[CalibrationBin, ...]

    @property
    def covered(self) -> int:
        """Bins whose expected rate lies in the interval of the observed one."""
        return sum(part.covered for part in self.bins)


def calibrations(frontier: Frontier) -> list[Calibration]:
    """Return the reference and each measured recipe of click tasks (those judged by log loss), first seed of each."""
    found = []
    for name, study, recipe, seed in _models(frontier):
        outcomes = study.outcomes(recipe, seed)
        if outcomes is None:
            continue
        try:
            found.append(_calibration(name, outcomes["score"], outcomes["target"]))
        except TaskError:  # outcomes of another kind than clicks
            continue
    return found


def _models(frontier: Frontier) -> Iterator[tuple[str, StudyRecords, str, int]]:
    studies = {study.name: study for study in frontier.studies}
    points = [point for point in frontier.measured if LOGLOSS.name in point.quality]
    on_front = {point.label for point in frontier.front()}
    for name in dict.fromkeys(point.study for point in points):
        seed = next(point.seeds[0] for point in points if point.study == name)
        label = "reference, uncompressed" + (f" ({name})" if len(studies) > 1 else "")
        yield label, studies[name], REFERENCE, seed
    for point in sorted(points, key=lambda one: one.label not in on_front):
        yield point.label, studies[point.study], point.recipe, point.seeds[0]


def _calibration(label: str, scores: np.ndarray, targets: np.ndarray) -> Calibration:
    (whole,) = calibration_bins(scores, targets, 1)
    bins = tuple(calibration_bins(scores, targets, BINS))
    return Calibration(
        label,
        _over(whole.expected, whole.observed),
        _over(whole.expected, whole.high),
        _over(whole.expected, whole.low),
        calibration_error(scores, targets, BINS),
        bins,
    )


def _over(expected: float, observed: float) -> float:
    return expected / observed if observed > 0 else float("inf")


# -- what the layouts show ----------------------------------------------------------------------------------------
def ratio_rows(found: list[Calibration]) -> list[list[str]]:
    """Return one row a model: expected over observed, mean distance of the bins, bins within their interval."""
    return [
        [
            one.label,
            f"{one.ratio:.3f} [{one.low:.3f}, {one.high:.3f}]",
            f"{one.error:.4f}",
            f"{one.covered} of {len(one.bins)}",
        ]
        for one in found
    ]


def bin_rows(found: list[Calibration]) -> list[list[str]]:
    """Return one row a bin of the models that are drawn: model, examples, expected, observed with its interval."""
    return [
        [
            one.label,
            f"{part.examples:,}",
            f"{part.expected:.4f}",
            f"{part.observed:.4f} [{part.low:.4f}, {part.high:.4f}]",
        ]
        for one in found[:CURVES]
        for part in one.bins
    ]


def drawing(found: list[Calibration]) -> dict[str, Any]:
    """Return coordinates of the curves: expected to the right, observed upwards, both from 0 to the largest rate."""
    shown = found[:CURVES]
    top = max((max(part.expected, part.high) for one in shown for part in one.bins), default=1.0)
    curves = []
    for one in shown:
        places = [(_across(part.expected, top), _up(part.observed, top)) for part in one.bins]
        bars = [(x, _up(part.low, top), _up(part.high, top)) for (x, _), part in zip(places, one.bins, strict=True)]
        curves.append(
            {"label": one.label, "line": " ".join(f"{x},{y}" for x, y in places), "dots": places, "bars": bars}
        )
    ends = (_across(0.0, top), _up(0.0, top), _across(top, top), _up(top, top))
    return {
        "curves": curves,
        "diagonal": ends,
        "top": f"{top:.2g}",
        "width": SIDE + 2 * EDGE,
        "height": SIDE + EDGE + 10,
    }


def _across(rate: float, top: float) -> float:
    return round(EDGE + SIDE * rate / top, 1)


def _up(rate: float, top: float) -> float:
    return round(10 + SIDE * (1.0 - rate / top), 1)
