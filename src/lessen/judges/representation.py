"""The suite `representation`: which known features own the variance inside, and which does the next cut erase first?

Compressors that keep variance keep what is easy: a hard feature may be answered as well as an easy one and take a
tenth of the variance (Lampinen et al., arXiv 2405.05847). Each feature f that the data name has two numbers: the share
of the last layer's variance that a linear map of f explains on held-out inputs (pooled R2, encoding direction), and
what the compact model's last layer still tells of it by a linear probe. A feature whose variance is below the noise
that compression added is in danger: the next cut erases it first.

Features come from the task: `slices(split)`, the classes, or `features(split)` of a task of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from lessen.judges.layers import Truths, rows_of
from lessen.judges.reading import entering, few, head_of
from lessen.judges.suite import Section, Suite, SuiteOptions, table
from lessen.metrics import Array, Floats, MeanMetric, Metric, Outcomes
from lessen.metrics.exact import net_loss_interval
from lessen.task import Split

MOST = 64
"""Values of a feature above which it is no category but a name; it is left out."""


class Told(MeanMetric):
    """Share of the features' values that a linear probe of the last layer tells right."""

    name, title, reads = "features-told", "features told", ("told",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the mean over features of each input."""
        return np.asarray(outcomes["told"].astype(np.float64).mean(axis=1))


class RepresentationOptions(SuiteOptions):
    """What a user may say of the features."""

    features: list[str] | None = Field(None, description="names of features; None: all that the task knows")
    examples: int = Field(4000, ge=200, le=10**6, description="test inputs, half to fit and half to tell")
    most: float = Field(0.01, ge=0, le=1, description="loss of told values that is accepted")


class Representation(Suite):
    """Variance shares of known features inside, and what a probe still tells of them."""

    name, question = "representation", "Which features own the variance inside, and which are in danger?"
    metrics: Mapping[str, Metric] = {"told": Told()}
    Options = RepresentationOptions

    def __init__(self, options: Any = None, task: Any = None) -> None:
        super().__init__(options, task)
        self._head = ""
        self._names: tuple[str, ...] = ()
        self._before: Floats | None = None
        self._shares: list[dict[str, float]] = []
        self._noise = 0.0

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each held-out input, whether a linear probe tells each feature's value right.

        The first model that is judged is the uncompressed one.
        """
        calls = few(self.task, split, self.options.examples)
        self._head = self._head or head_of(model, self.task, self.name)
        held = rows_of(entering(model, [self._head], calls, self.task.forward, self.name)[self._head])
        labels = self._labels(calls, split, len(held))
        fit = np.arange(len(held)) % 2 == 0
        self._names = tuple(labels)
        self._shares.append({name: variance_share(held, values, fit) for name, values in labels.items()})
        self._noise = 0.0 if self._before is None else noise_share(self._before, held)
        self._before = held if self._before is None else self._before
        told = np.stack([probed(held, values, fit) for values in labels.values()], axis=1)
        return Outcomes({"told": told})

    def _labels(self, calls: list[Any], split: Split, rows: int) -> dict[str, Array]:
        own = getattr(self.task, "features", None)
        known = dict(own(split)) if callable(own) else dict(self.task.slices(split))
        target = torch.cat([self.task.target(call) for call in calls])
        if not known and target.ndim == 1:
            known["class"] = target.numpy()
        wanted = self.options.features
        found: dict[str, Array] = {}
        for name, values in known.items():
            kinds, codes = np.unique(np.asarray(values)[:rows], return_inverse=True)
            if (wanted is None or name in wanted) and 1 < len(kinds) <= MOST:
                found[name] = codes.reshape(-1)
        if not found or (wanted and set(wanted) - set(found)):
            raise self.refuse(
                f"no features are known by these names; task {self.task.name!r} knows {', '.join(known) or 'none'}"
            )
        return found

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return shares and told values; caught is a feature whose told values fell by more than `most`, proved."""
        before.check_same_units(after)
        rows, caught = [], []
        figures: dict[str, Any] = {}
        old, new = self._shares[0], self._shares[-1]
        for at, name in enumerate(self._names):
            one, two = before["told"][:, at].astype(bool), after["told"][:, at].astype(bool)
            lost, gained, n = int((one & ~two).sum()), int((~one & two).sum()), len(one)
            confidence = 1.0 - 0.05 / len(self._names)
            low, high = (float(end) for end in net_loss_interval(lost, gained, n, confidence))
            ratio = old[name] / self._noise if self._noise > 0 else float("inf")
            danger = "in danger" if ratio < 1 else ""
            rows.append(
                (name, f"{old[name]:.3f}", f"{new[name]:.3f}", f"{one.mean():.3f}", f"{two.mean():.3f}",
                 f"{(lost - gained) / n:+.3f} [{low:+.3f}, {high:+.3f}]", danger)
            )  # fmt: skip
            figures[name] = {
                "share": [old[name], new[name]],
                "told": [float(one.mean()), float(two.mean())],
                "low": low,
                "high": high,
                "share by noise": ratio if np.isfinite(ratio) else None,
            }
            if low > self.options.most:
                caught.append(
                    f"{name} is told less well: {(lost - gained) / n:+.3f} [{low:+.3f}, {high:+.3f}] of its values"
                )
        lines = (
            f"Compression added noise of {100 * self._noise:.2f} % of the last layer's variance. Shares add up to at "
            "most 1 only where features are independent; a low share does not mean that a feature is not used.",
        )
        columns = (
            "feature", "share of variance, uncompressed", "compact", "told, uncompressed", "compact ",
            "lost [95 %, for all at once]", "share below noise",
        )  # fmt: skip
        figures["noise"] = self._noise
        return Section(self.name, self.question, tuple(caught), lines, (table("", columns, rows),), figures)


def one_hot(codes: Array) -> Floats:
    """Return truth values of each code, [n, codes]."""
    found = np.zeros((len(codes), int(codes.max()) + 1))
    found[np.arange(len(codes)), codes] = 1.0
    return found


def variance_share(held: Floats, codes: Array, fit: Truths) -> float:
    """Return the pooled R2 of a feature's value -> representation, fitted on `fit`, told on the rest; at least 0."""
    values = one_hot(codes)
    mean = held[fit].mean(axis=0)
    counts = values[fit].sum(axis=0)
    means = (values[fit].T @ (held[fit] - mean)) / np.maximum(counts, 1.0)[:, None]
    rest = held[~fit] - mean
    return max(0.0, 1.0 - float(((rest - values[~fit] @ means) ** 2).sum() / max(float((rest**2).sum()), 1e-300)))


def noise_share(before: Floats, after: Floats) -> float:
    """Return the squared difference of two representations by the variance of the first."""
    spread = float(((before - before.mean(axis=0)) ** 2).sum())
    return float(((after - before) ** 2).sum() / max(spread, 1e-300))


def probed(held: Floats, codes: Array, fit: Truths) -> Array:
    """Return whether a linear probe (ridge on one-hot values) tells each held-out input's value right."""
    scale = held[fit].std(axis=0) + 1e-9
    x = np.concatenate([(held - held[fit].mean(axis=0)) / scale, np.ones((len(held), 1))], axis=1)
    gram = x[fit].T @ x[fit] + 1e-2 * np.eye(x.shape[1])
    scores = x[~fit] @ np.linalg.solve(gram, x[fit].T @ one_hot(codes)[fit])
    return np.asarray(scores.argmax(axis=1) == codes[~fit])
