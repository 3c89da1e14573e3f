"""The suite `flips`: how many answers changed, and were more lost than gained?

A compact model with an unchanged mean may answer other questions right than its reference (Dutta et al., "Accuracy is
not all you need", arXiv 2407.09141). Flips need no labels; with labels the paired test of McNemar finds a loss from a
fraction of the examples that two separate accuracies need. Intervals: `metrics/exact.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from lessen.judges.answers import Answers, answered, read
from lessen.judges.suite import Section, Suite, SuiteOptions, share, table
from lessen.metrics import Array, Floats, MeanMetric, Outcomes
from lessen.metrics.exact import exact_interval, net_loss_interval, paired_p
from lessen.metrics.intervals import Z, crossed_interval
from lessen.task import Split


class RightAtPlaces(MeanMetric):
    """Share of right answers of a unit, averaged over units; of a class or a click one answer a unit."""

    name, title, reads = "right-answers", "right answers", ()

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the share of each unit, NaN-free: units with no judged place count 0."""
        right = read(outcomes, outcomes, "flips").right
        if right is None:
            return np.zeros(len(outcomes))
        hits = right[0].reshape(len(outcomes), -1)
        judged = (
            (outcomes["wanted"].astype(np.int64) >= 0)
            if "wanted" in outcomes.columns
            else np.ones(hits.shape, dtype=bool)
        )
        return np.asarray(
            (hits.astype(bool) & judged).sum(axis=1) / np.maximum(judged.sum(axis=1), 1), dtype=np.float64
        )


class FlipOptions(SuiteOptions):
    """What a user may say of flips."""

    most: float | None = Field(None, ge=0, le=1, description="largest share of flips that is accepted; None: any")


class Flips(Suite):
    """Share of answers that changed, with an exact interval, and the paired test of what was lost and gained."""

    name, question = "flips", "How many answers changed, and were more lost than gained?"
    metrics = {"right": RightAtPlaces()}
    Options = FlipOptions
    always = 2

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return the task's own outcomes where they hold answers, else what is answered at each place of a text."""
        found = self.task.outcomes(model, split)
        if {"score", "target"} <= set(found.columns) or ("right" in found.columns and "nll" not in found.columns):
            return found
        return answered(self.task, model, split, self.name)

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return the flips; caught is a net loss that the paired test proves, or more flips than are accepted."""
        found = read(before, after, self.name)
        if found.before is None or found.after is None:
            raise self.refuse("the outcomes hold losses and no answers")
        return _places(self, found) if found.before.ndim > 1 else _units(self, found)


def _units(suite: Flips, found: Answers) -> Section:
    before, after = np.asarray(found.before), np.asarray(found.after)
    n, flips = len(before), int((before != after).sum())
    low, high = exact_interval(flips, n)
    rows = [("answers that changed", f"{flips} of {n}", share(flips / n, low, high))]
    figures: dict[str, Any] = {"units": n, "flips": flips, "share": flips / n, "low": low, "high": high}
    caught = _too_many(suite.options.most, low, share(flips / n, low, high))
    if found.right is not None:
        lost, gained = _lost_gained(found.right)
        ends = [float(end) for end in net_loss_interval(lost, gained, n)]
        p = paired_p(lost, gained)
        rows += [
            ("right to wrong", f"{lost} of {n}", share(lost / n, *exact_interval(lost, n))),
            ("wrong to right", f"{gained} of {n}", share(gained / n, *exact_interval(gained, n))),
            ("net loss of right answers", f"{lost - gained:+d}", share((lost - gained) / n, *ends)),
            ("paired test (McNemar, exact)", "", f"p = {p:.3g}"),
        ]
        figures |= {"lost": lost, "gained": gained, "p": p, "net_low": ends[0], "net_high": ends[1]}
        if p < 0.05 and lost > gained:
            caught.append(f"more answers are lost than gained: {lost} against {gained} of {n}, p = {p:.2g}")
    lines = []
    if found.kind == "clicks":
        lines.append("Yes is a score above the cut at which the uncompressed model says yes as often as the labels do.")
    if flips == 0:
        lines.append(f"No answer changed: the true share is at most {share(high)} with 95 % confidence.")
    tables = (table("", ("", "answers", "share [95 %]"), rows),)
    return Section(suite.name, suite.question, tuple(caught), tuple(lines), tables, figures)


def _places(suite: Flips, found: Answers) -> Section:
    """Return flips of texts: places of one window hang together, so that windows are the units of the interval."""
    before, after = np.asarray(found.before), np.asarray(found.after)
    judged = before >= 0
    each = np.stack([((before != after) & judged).sum(axis=1), judged.sum(axis=1)], axis=1).astype(np.float64)
    flips, places = (int(value) for value in each.sum(axis=0))
    low, high = _of_windows(each)
    rows = [("answers that changed", f"{flips} of {places}", share(flips / places, low, high))]
    figures: dict[str, Any] = {"units": len(before), "places": places, "flips": flips, "share": flips / places}
    figures |= {"low": low, "high": high}
    caught = _too_many(suite.options.most, low, share(flips / places, low, high))
    if found.right is not None:
        hits = [(right.astype(bool) & judged).sum(axis=1).astype(np.float64) for right in found.right]
        ends = _of_windows(np.stack([hits[0] - hits[1], each[:, 1]], axis=1), signed=True)
        net = float((hits[0] - hits[1]).sum()) / places
        rows.append(("net loss of right answers", f"{int((hits[0] - hits[1]).sum()):+d}", share(net, *ends)))
        figures |= {"net_loss": net, "net_low": ends[0], "net_high": ends[1]}
        if ends[0] > 0:
            caught.append(f"more answers are lost than gained: a net loss of {share(net, *ends)}")
    lines = (f"An answer is the likeliest next token; the {len(before)} windows are the units of the intervals.",)
    tables = (table("", ("", "answers", "share [95 %]"), rows),)
    return Section(suite.name, suite.question, tuple(caught), lines, tables, figures)


def _of_windows(each: Floats, signed: bool = False) -> tuple[float, float]:
    """Return the 95 % interval of one sum over another, [windows, 2]; nothing seen is at most 3 in n windows."""
    total = each.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = (total - each)[:, 0] / (total - each)[:, 1]
    ratio = total[0] / total[1]
    low, high = crossed_interval(np.concatenate([[ratio], left])[:, None], exact_interval(0, len(each))[1])
    if low is None or high is None:
        spread = Z * float(left.std()) * len(each) ** 0.5
        low, high = ratio - spread, ratio + spread
    return (float(low), float(high)) if signed else (max(0.0, float(low)), min(1.0, float(high)))


def _lost_gained(right: tuple[Array, Array]) -> tuple[int, int]:
    before, after = (side.astype(bool) for side in right)
    return int((before & ~after).sum()), int((~before & after).sum())


def _too_many(most: float | None, low: float, text: str) -> list[str]:
    return (
        [f"more answers changed than the {share(most)} that are accepted: {text}"]
        if most is not None and low > most
        else []
    )
