"""What an answer that ignores the inputs would score: in closed form, or by dealing answers to other units."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lessen.errors import TaskError
from lessen.metrics.base import Metric
from lessen.metrics.outcomes import Outcomes

LABELS = frozenset({"target", "relevant"})
"""Columns that say what is right. Without one that the metric reads, nothing can be dealt anew."""
DRAWS = 20


def chance_of(metric: Metric, outcomes: Outcomes) -> float | None:
    """Return the value of `metric` by chance, or None where it is not known.

    A metric that knows no closed form is computed on the answers of the same model in an order that does not belong to
    the labels, 20 times; the mean is returned. A metric that the order does not move, such as a ratio of two sums, says
    nothing about chance.
    """
    known = metric.chance(outcomes)
    if known is not None or not LABELS & set(metric.reads):
        return known
    generator, values = np.random.default_rng(0), []
    try:
        whole = metric(outcomes)
        for _ in range(DRAWS):
            order = generator.permutation(len(outcomes))
            dealt = {name: column[order] for name, column in outcomes.made.items()}
            values.append(metric(Outcomes({**outcomes.columns, **dealt}, outcomes.group, outcomes.given)))
    except TaskError:
        return None
    return None if np.allclose(values, whole, rtol=1e-9, atol=1e-12) else float(np.mean(values))


def standards(metrics: Mapping[str, Metric], outcomes: Outcomes) -> dict[str, dict[str, float | None]]:
    """Return chance and resolution of each metric on the outcomes of a reference.

    A verdict needs no class of the metric where the record holds them, and the outcomes the metric with units left out.
    """
    found = {}
    for name, metric in metrics.items():
        smallest = metric.resolution(outcomes)
        found[name] = {
            "chance": chance_of(metric, outcomes),
            "resolution": smallest if math.isfinite(smallest) else None,
        }
    return found
