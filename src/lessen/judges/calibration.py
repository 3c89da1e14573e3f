"""The suite `calibration`: when a model is 80 % sure, is it right 80 times in 100 - still?

Expected calibration error over 15 bins of equal size (of equal-width bins one holds most units). Each bin's gap has
noise, so that the plain figure is too high, for a calibrated model most of all. Hence two estimates that err to either
side make the interval: the plain one above, and one that takes the sign of each gap from the other units below. Two
models are compared by the mean square of the gaps, of which the noise can be taken out without bias (Kumar et al.,
"Verified uncertainty calibration", arXiv 1909.10155); its paired interval decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lessen.judges.answers import Answers, read
from lessen.judges.suite import CannotAnswer, Section, Suite, SuiteOptions, table
from lessen.metrics import Array, Floats, Metric, Outcomes
from lessen.metrics.base import bootstrap_weights
from lessen.metrics.intervals import Z

BINS, RESAMPLES = 15, 400
GROUPS = 5000
"""Units above this number are resampled in so many groups, dealt by their number."""


class SquaredGap(Metric):
    """Mean square of the gaps of 15 bins, their noise taken out: classes by confidence, clicks by probability."""

    name, title, higher_is_better = "squared-gap", "mean square of calibration gaps", False

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return it under each weighting of the units."""
        return gaps(*_sure(read(outcomes, outcomes, "calibration"), 0), weights).square


class Calibration(Suite):
    """Calibration error of both models, and what it changed by."""

    name, question = "calibration", "Is it as sure as it is right?"
    metrics = {"square": SquaredGap()}
    Options = SuiteOptions
    always = 5

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return both errors with intervals; caught is a compact model that is proved worse calibrated."""
        found = read(before, after, self.name)
        if found.surety is None or found.right is None:
            raise self.refuse("the outcomes hold no chance of an answer")
        groups = min(len(before), GROUPS)
        ones, weights = np.ones((1, groups)), bootstrap_weights(groups, RESAMPLES)
        rows, drawn, whole, sure, figures = [], [], [], [], {}
        for side, name in enumerate(("uncompressed", "compact")):
            expected, seen = _sure(found, side)
            point, resampled = gaps(expected, seen, ones), gaps(expected, seen, weights)
            low = max(0.0, float(point.below[0]) - Z * float(resampled.below.std()))
            high = float(point.plain[0]) + Z * float(resampled.plain.std())
            rows.append((name, f"{point.plain[0]:.4f}", f"[{low:.4f}, {high:.4f}]", f"{expected.mean():.4f}"))
            figures[name] = {"ece": float(point.plain[0]), "low": low, "high": high, "sure": float(expected.mean())}
            whole.append(float(point.square[0]))
            drawn.append(resampled.square)
            sure.append(expected)
        change, apart = whole[1] - whole[0], drawn[1] - drawn[0]
        half = Z * float(apart.std())
        said = f"{change:+.5f} [{change - half:+.5f}, {change + half:+.5f}]"
        caught = [f"the compact model is worse calibrated: mean square of its gaps {said}"] if change > half > 0 else []
        figures["difference"] = {"square": change, "low": change - half, "high": change + half}
        what = "probability of a yes" if found.kind == "clicks" else "confidence in the answer"
        lines = (f"{BINS} bins of equal size. Change of the mean square of their gaps [95 %]: {said}.",)
        tables = (table("", ("model", "calibration error", "95 % interval", f"mean {what}"), rows),)
        return Section(self.name, self.question, tuple(caught), lines, tables, figures)


@dataclass(frozen=True)
class Gaps:
    """Three figures of the gaps of the bins, one value a row of weights."""

    plain: Floats
    """Mean absolute gap: too high by the noise of each bin."""
    below: Floats
    """Mean gap with the sign that the bin's other units give: too low where the sign is in doubt."""
    square: Floats
    """Mean square with the noise taken out: unbiased, below zero at times."""


def gaps(expected: Floats, seen: Array, weights: Floats) -> Gaps:
    """Return the gaps between what was expected and seen [units], under each row of weights [rows, units].

    Each weight holds for a group of units where there are fewer weights than units; units are dealt to them in turn.
    """
    order = np.argsort(expected, kind="stable")
    place = np.empty(len(expected), np.intp)
    place[order] = np.arange(len(expected)) * BINS // len(expected)
    each = expected - seen.astype(np.float64)
    groups = weights.shape[1]
    cell = (np.arange(len(each)) % groups) * BINS + place
    parts = (np.bincount(cell, values, groups * BINS) for values in (np.ones(len(each)), each, each**2))
    counts, sums, squares = (weights @ part.reshape(groups, BINS) for part in parts)
    known = counts > 1
    mean = sums / np.maximum(counts, 1.0)
    noise = np.where(known, (squares / np.maximum(counts, 1.0) - mean**2) / np.maximum(counts - 1.0, 1.0), 0.0)
    total = counts.sum(axis=1)
    # what noise adds to |mean|: nothing where the sign is clear, all of it where there is no gap (then the mean is 0)
    deviation = np.sqrt(np.maximum(noise, 1e-300))
    doubt = deviation * 2.0 * np.exp(-0.5 * (mean / deviation) ** 2) / math.sqrt(math.pi)
    plain = (np.abs(mean) * counts).sum(axis=1) / total
    below = ((np.abs(mean) - doubt) * counts).sum(axis=1) / total
    return Gaps(plain, below, ((mean**2 - noise) * counts).sum(axis=1) / total)


def _sure(found: Answers, side: int) -> tuple[Floats, Array]:
    """Return what was expected of each unit and what happened: a yes of clicks, a right answer of classes."""
    if found.surety is None or found.right is None or found.wanted is None:
        raise CannotAnswer("suite 'calibration': the outcomes hold no chance of an answer")
    return found.surety[side], (found.wanted if found.kind == "clicks" else found.right[side]).astype(np.float64)
