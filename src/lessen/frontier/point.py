"""A point of a frontier: everything measured of one recipe, over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lessen.frontier.verdict import Difference, Judgement, Verdict, judge


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds: its mean and, with two seeds or more, the standard deviation from seed to seed."""

    mean: float
    spread: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate | None:
        """Return the estimate of the values that were measured, or None."""
        known = tuple(value for value in values if value is not None)
        if not known:
            return None
        return cls(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None, known)


@dataclass(frozen=True)
class Point:
    """One recipe: everything measured, over its seeds, beside the reference of the same seeds."""

    study: str
    recipe: str
    recipe_hash: str
    label: str
    """Name in tables and plots: the recipe, and the study where two studies use one name."""
    families: tuple[str, ...]
    seeds: tuple[int, ...]
    errors: Mapping[int, str]
    """What went wrong, by seed, for the runs that failed."""
    steps: tuple[Mapping[str, Any], ...] = ()
    quality: Mapping[str, Estimate] = field(default_factory=dict)
    reference_quality: Mapping[str, Estimate] = field(default_factory=dict)
    difference: Mapping[str, Difference] = field(default_factory=dict)
    cost: Mapping[str, Estimate] = field(default_factory=dict)
    reference_cost: Mapping[str, Estimate] = field(default_factory=dict)
    share: Mapping[str, Estimate] = field(default_factory=dict)
    """Cost divided by the reference's cost of the same seed: below 1 is cheaper."""
    curve: str | None = None
    """Name that the rates of one codec share: their points are one line."""
    latency_interval: tuple[float, float] | None = None
    """95 % interval of the latency ratio: over the seeds, the lowest lower and the highest upper end."""
    judgement: Judgement = field(default_factory=lambda: judge(None, 1.0))
    flags: tuple[str, ...] = ()
    gates: Mapping[str, bool] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """True when no seed gave a measurement."""
        return not self.seeds

    @property
    def verdict(self) -> Verdict:
        """Verdict on the first metric against the margin."""
        return self.judgement.verdict

    def axis(self, name: str) -> float | None:
        """Return the value used to compare recipes on a cost: its share of the reference, or the cost itself."""
        if name in self.share:
            return self.share[name].mean
        return self.cost[name].mean if name in self.cost else None
