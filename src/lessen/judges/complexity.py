"""The suite `complexity`: which of the features that the model had learned are gone, the simple or the complex ones?

Features are the parts of a nonnegative factorisation of what enters the uncompressed model's head; a feature is simple
if a linear map reads it from early layers, complex if only the last layers hold it (Fel et al., arXiv 2407.06076):
complexity K = 1 - the mean over layers of held-out R2, which for standardised features is their V-information under a
linear-Gaussian family. The dictionary stays that of the uncompressed model; what the compact model retains of a feature
is the R2 by which its own last layer tells it. Importance is the mean contribution to the score of the answer.

Differs from the paper: held-out R2 with a ridge chosen per feature, layers wider than 256 projected at random, and
encoders whose last activations have a sign are split into positive and negative parts before they are factorised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from lessen.judges.layers import held_out_r2, narrowed, nonnegative_factors, rows_of, stages, weight_of
from lessen.judges.reading import entering, few, head_of
from lessen.judges.suite import Section, Suite, SuiteOptions, spoken, table
from lessen.metrics import Floats, MeanMetric, Metric, Outcomes
from lessen.metrics.many import mean_interval
from lessen.task import Split

LOST = 0.5
"""R2 below which a feature counts as lost."""


class Retained(MeanMetric):
    """Mean R2 by which the uncompressed model's features are told from the last layer."""

    name, title, reads = "retained-features", "features retained", ("retained",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return what is retained of each feature, from 0 to 1."""
        return outcomes["retained"].astype(np.float64)


class ComplexityOptions(SuiteOptions):
    """What a user may say of features."""

    features: int = Field(40, ge=4, le=2000, description="features that the last layer is factorised into")
    examples: int = Field(2000, ge=200, le=10**6, description="test inputs, half to fit and half to tell")
    most: float = Field(0.05, ge=0, le=1, description="mean loss of a third of the features that is accepted")
    seed: int = Field(0, ge=0, le=2**31, description="of the halves")


class Complexity(Suite):
    """What is retained of the uncompressed model's features, by how complex and how important they are."""

    name, question = "complexity", "Which learned features are gone: simple or complex ones?"
    metrics: Mapping[str, Metric] = {"retained": Retained()}
    Options = ComplexityOptions

    def __init__(self, options: Any = None, task: Any = None) -> None:
        super().__init__(options, task)
        self._known: tuple[str, list[str], Floats, Floats] | None = None

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return for each feature what is retained of it, its complexity in this model and its importance.

        The first model that is judged is the one whose features are taken.
        """
        calls = few(self.task, split, self.options.examples)
        if self._known is None:
            head = head_of(model, self.task, self.name)
            paths = stages(model, head)
            held = entering(model, paths, calls, self.task.forward, self.name)
            codes, gain = self._features(rows_of(held[head]), weight_of(model, head))
            self._known = head, paths, codes, gain
        else:
            head, paths, codes, gain = self._known
            held = entering(model, paths, calls, self.task.forward, self.name)
        fit = np.random.default_rng(self.options.seed).permutation(len(codes)) % 2 == 0
        layers = [np.clip(held_out_r2(narrowed(rows_of(held[path])), codes, fit), 0.0, 1.0) for path in paths]
        found = {"retained": layers[-1], "complexity": 1.0 - np.mean(layers, axis=0), "importance": gain}
        return Outcomes(found, given=frozenset({"importance"}))

    def _features(self, last: Floats, weight: Floats | None) -> tuple[Floats, Floats]:
        """Return standardised features [n, features] of a model's last layer, and their importance."""
        signed = bool((last < 0).any())
        values = np.concatenate([np.maximum(last, 0), np.maximum(-last, 0)], axis=1) if signed else last
        codes, words = nonnegative_factors(values, self.options.features)
        alive = codes.std(axis=0) > 1e-9 * max(float(codes.std()), 1e-12)
        codes, words = codes[:, alive], words[alive]
        if codes.shape[1] < 4:
            raise self.refuse("the last layer holds fewer than four features that vary")
        ways = words[:, : last.shape[1]] - words[:, last.shape[1] :] if signed else words
        if weight is None or weight.shape[1] != ways.shape[1]:
            gain = codes.mean(axis=0) * np.linalg.norm(ways, axis=1)
        else:
            answer = (last @ weight.T).argmax(axis=1)
            gain = np.abs((codes * (ways @ weight.T)[:, answer].T).mean(axis=0))
        return (codes - codes.mean(axis=0)) / codes.std(axis=0), gain / gain.sum()

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return what thirds of the features retain; caught is a third that loses more than `most`, proved."""
        before.check_same_units(after)
        one, two = (each["retained"].astype(np.float64) for each in (before, after))
        loss = one - two
        gain = before["importance"].astype(np.float64)
        rows, caught = [], []
        figures: dict[str, Any] = {}
        for by, values in (("complexity", before["complexity"]), ("importance", gain)):
            thirds = np.array_split(np.argsort(values, kind="stable"), 3)
            for word, members in zip(("lowest", "middle", "highest"), thirds, strict=True):
                low, high = mean_interval(loss[members], np.zeros(2), 6)
                mean, name = float(loss[members].mean()), f"{word} third by {by}"
                gone = int(((two < LOST) & (one >= LOST))[members].sum())
                figures[name] = {"loss": mean, "low": low, "high": high, "gone": gone, "features": len(members)}
                rows.append(
                    (
                        name,
                        f"{len(members)}",
                        f"{two[members].mean():.3f}",
                        spoken(mean, low, high),
                        f"{gone}",
                    )
                )
                if low > self.options.most:
                    caught.append(f"{name}: {spoken(mean, low, high)} of the features' variance is lost")
        mass = float((gain * np.clip(loss, 0, None)).sum())
        ranks = [np.argsort(np.argsort(each["complexity"])) for each in (before, after)]
        rank = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
        shift = float(after["complexity"].mean() - before["complexity"].mean())
        figures |= {"lost importance": mass, "rank correlation": rank, "shift of complexity": shift}
        lines = (
            f"{len(gain)} features; {100 * mass:.1f} % of the importance is lost. Complexity: mean "
            f"{before['complexity'].mean():.2f}, "
            f"moved by {shift:+.3f}, rank correlation {rank:.2f}. It is relative to this model's layers.",
        )
        columns = ("features", "number", "retained by the compact model", "lost R2 [95 %, for all at once]", "gone")
        return Section(self.name, self.question, tuple(caught), lines, (table("", columns, rows),), figures)
