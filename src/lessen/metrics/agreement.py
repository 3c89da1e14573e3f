"""How far the outputs of two models agree. Columns: cosine of each input's outputs, and squared error and energy."""

from __future__ import annotations

import numpy as np

from lessen.metrics.base import Floats, MeanMetric, Metric
from lessen.metrics.outcomes import Outcomes


class CosineAgreement(MeanMetric):
    """Mean cosine between what a model answers and what the uncompressed model answers; 1 is the same direction."""

    name, title = "cosine-agreement", "agreement with the uncompressed model"
    reads = ("cosine",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the cosine of each input."""
        return outcomes["cosine"].astype(np.float64)

    def chance(self, outcomes: Outcomes) -> float:  # noqa: ARG002 - the same for any outputs
        """Return 0: directions that have nothing to do with each other."""
        return 0.0


class RelativeError(Metric):
    """Root of the squared difference to the uncompressed model's outputs, as a share of their own size."""

    name, title = "relative-error", "relative error"
    higher_is_better = False
    reads = ("error", "energy")

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return sqrt(w.error / w.energy)."""
        error, energy = (weights @ outcomes[name].astype(np.float64) for name in ("error", "energy"))
        return np.sqrt(error / energy)
