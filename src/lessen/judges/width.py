"""The suite `width`: does a linear head on the compact model's features err more than its width must cost?

The last layer of both models is taken for the features of a ridge regression on the classes. Test error is measured
with the ridge that suits the uncompressed features and with one tuned anew, and compared with what as many random
features would have (`judges/law.py`). The compact features are worse than a random choice of the uncompressed ones if
their error is above the law; what the old ridge costs beside the new one is lost by not tuning the head again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from lessen.judges.law import of_samples, predicted_error
from lessen.judges.layers import rows_of
from lessen.judges.reading import entering, few, head_of
from lessen.judges.representation import one_hot
from lessen.judges.suite import Section, Suite, SuiteOptions, spoken, table
from lessen.metrics import Floats, MeanMetric, Metric, Outcomes
from lessen.metrics.many import mean_interval
from lessen.task import Split

RIDGES = np.logspace(-3, 3, 13)


class HeadError(MeanMetric):
    """Mean squared test error of a ridge regression of the classes on the last layer, tuned."""

    name, title, higher_is_better, reads = "head-error", "error of a linear head", False, ("tuned",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the squared error of each held-out input."""
        return outcomes["tuned"].astype(np.float64)


class WidthOptions(SuiteOptions):
    """What a user may say of the head."""

    examples: int = Field(2000, ge=100, le=20_000, description="test inputs, half to fit and half to measure on")
    most: float = Field(0.02, ge=0, le=10, description="error above the uncompressed, relative to it, that is accepted")


class Width(Suite):
    """Measured and predicted error of a linear head, before and after."""

    name, question = "width", "Do its features cost a linear head more than their number must?"
    metrics: Mapping[str, Metric] = {"error": HeadError()}
    Options = WidthOptions

    def __init__(self, options: Any = None, task: Any = None) -> None:
        super().__init__(options, task)
        self._head, self._ridge = "", 0.0
        self._known: tuple[Floats, Floats, float, int] | None = None
        self._law: list[dict[str, float]] = []

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each held-out input, the squared error with the ridge tuned and with the first model's ridge.

        The first model that is judged is the uncompressed one.
        """
        calls = few(self.task, split, self.options.examples)
        self._head = self._head or head_of(model, self.task, self.name)
        held = rows_of(entering(model, [self._head], calls, self.task.forward, self.name)[self._head])
        target = torch.cat([self.task.target(call) for call in calls])
        if target.ndim != 1 or target.is_floating_point():
            raise self.refuse(f"it needs one class an input; task {self.task.name!r} gives {tuple(target.shape)}")
        codes = np.unique(target.numpy(), return_inverse=True)[1].reshape(-1)
        fit = np.arange(len(held)) % 2 == 0
        y = one_hot(codes)
        y, x = y - y[fit].mean(axis=0), held - held[fit].mean(axis=0)
        x = x / max(float(np.sqrt((x[fit] ** 2).mean())), 1e-12)  # one scale for both: compression may shrink all
        inner = np.flatnonzero(fit)
        tuned = _tuned(x[inner], y[inner])
        self._ridge = self._ridge or tuned
        found = {
            name: _errors(x[inner], y[inner], x[~fit], y[~fit], ridge)
            for name, ridge in (("tuned", tuned), ("fixed", self._ridge))
        }
        if self._known is None:
            self._known = (*of_samples(x[inner] / np.sqrt(x.shape[1]), y[inner]), x.shape[1])
        eigenvalues, powers, noise, _ = self._known
        width = int(np.linalg.matrix_rank(x[inner], tol=1e-4 * np.linalg.norm(x[inner], 2)))
        predicted = min(
            predicted_error(len(inner), max(width, 1), ridge, eigenvalues, powers, noise) for ridge in RIDGES
        )
        self._law.append({"width": width, "ridge": float(tuned), "law": predicted})
        return Outcomes(found)

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return measured errors and the law's; caught is an error above the uncompressed one by more than `most`."""
        before.check_same_units(after)
        old, new = self._law[0], self._law[-1]
        moved = after["tuned"].astype(np.float64) - before["tuned"].astype(np.float64)
        low, high = mean_interval(moved, np.zeros(2))
        base = float(before["tuned"].mean())
        rows = []
        for name, told, found in (("uncompressed", old, before), ("compact", new, after)):
            measured = (f"{found[which].mean():.4f}" for which in ("tuned", "fixed"))
            rows.append((name, f"{told['width']}", *measured, f"{told['law']:.4f}"))
        untuned = float(after["fixed"].mean() - after["tuned"].mean())
        excess = float(after["tuned"].mean()) - new["law"]
        said = spoken(float(moved.mean()), low, high)
        figures = {
            "before": base,
            "after": float(after["tuned"].mean()),
            "low": low,
            "high": high,
            "old ridge": untuned,
            "above law": excess,
            "width": [old["width"], new["width"]],
            "law": [old["law"], new["law"]],
        }
        caught = [f"a linear head on its features errs more: {said}"] if low > self.options.most * base else []
        lines = (
            f"Change of the tuned error [95 %]: {said}. Of it, keeping the old ridge would add {untuned:+.4f}.",
            f"Above the law for as many random features: {excess:+.4f}; below 0 they are better than random.",
        )
        columns = (
            "features",
            "dimensions",
            "test error, ridge tuned",
            "with the uncompressed model's ridge",
            "law, ridge tuned",
        )
        return Section(self.name, self.question, tuple(caught), lines, (table("", columns, rows),), figures)


def _tuned(x: Floats, y: Floats) -> float:
    """Return the ridge of the least error on a fifth of the rows."""
    cut = 4 * len(x) // 5
    errors = [_errors(x[:cut], y[:cut], x[cut:], y[cut:], ridge).mean() for ridge in RIDGES]
    return float(RIDGES[int(np.argmin(errors))])


def _errors(x: Floats, y: Floats, other: Floats, wanted: Floats, ridge: float) -> Floats:
    """Return the squared error of each row of `other`, summed over outputs; the ridge is that of K = x x^T / width."""
    gram = x.T @ x / x.shape[1] + ridge * np.eye(x.shape[1])
    predicted = other / x.shape[1] @ np.linalg.solve(gram, x.T @ y)
    found: Floats = ((wanted - predicted) ** 2).sum(axis=1)
    return found
