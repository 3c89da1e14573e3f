"""What a search is for: the lines of its budget, what is made small within them, and how far a point misses them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lessen.errors import ConfigError, nearest
from lessen.frontier.gates import Gate, check_units, parse_gates
from lessen.metrics import Metric

MISSED = 1e6
"""What a missed line weighs against everything that is made small."""


@dataclass(frozen=True)
class Goal:
    """A budget on one cost and on the first metric; either line may be absent, not both.

    The cheapest point is sought within a line on the metric; the best one within a line on the cost alone.
    """

    cost: str
    """Kind of cost that is searched, as its share of the reference."""
    most: float | None
    """Largest share of the reference's cost."""
    loss: float | None
    """Largest loss of the first metric, in its own unit."""
    text: str

    @classmethod
    def parse(cls, budget: str | Sequence[str], cost: str, metrics: Mapping[str, Metric]) -> Goal:
        """Read `"stored_bytes<=0.1x, auc>=-0.001"`.

        Raises:
            ConfigError: a line on something that the task does not measure, on two costs, or no line at all.
        """
        primary = next(iter(metrics))
        most = loss = None
        gates = parse_gates(budget)
        if not gates:
            raise ConfigError('give --budget, such as --budget "stored_bytes<=0.1x, auc>=-0.001"')
        check_units(gates, metrics)
        for gate in gates:
            if gate.name == primary:
                loss = _tighter(loss, _loss(gate, metrics[primary]))
            elif gate.name in metrics:
                raise ConfigError(f"budget {gate.text!r}: a search goes by the first metric, {primary!r}")
            elif gate.name == cost:
                most = _tighter(most, _share(gate))
            else:
                raise ConfigError(
                    f"budget {gate.text!r}: this search is about {cost!r} and {primary!r}; "
                    f"{nearest(gate.name, [cost, primary])}; another cost is named by `cost:` in the file"
                )
        return cls(cost, most, loss, ", ".join(gate.text for gate in gates))

    @property
    def bend(self) -> float:
        """The loss around which predictions have to be sharp."""
        return max(self.loss or 0.0, 1e-4)

    def misses(self, cost: float, loss: float) -> float:
        """Return by how much a point misses the budget, in units of its limits; 0 where it holds every line."""
        over = 0.0 if self.most is None else max(0.0, cost / self.most - 1.0)
        lost = 0.0 if self.loss is None else max(0.0, (loss - self.loss) / self.bend)
        return over + lost

    def scores(self, costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """Return what is made small [n]: cost or loss within the budget, and far above it what misses it."""
        over = np.zeros(len(costs)) if self.most is None else np.maximum(0.0, costs / self.most - 1.0)
        lost = np.zeros(len(costs)) if self.loss is None else np.maximum(0.0, (losses - self.loss) / self.bend)
        wanted = costs if self.loss is not None else losses
        return np.asarray(wanted + MISSED * (over + lost))


def _tighter(known: float | None, limit: float) -> float:
    """Return the tighter of two limits on one figure."""
    if not math.isfinite(limit):
        raise ConfigError("a limit of the budget is too large for a number; leave its line out")
    return limit if known is None else min(known, limit)


def _share(gate: Gate) -> float:
    if not gate.at_most or not gate.relative or gate.limit <= 0:
        raise ConfigError(
            f"budget {gate.text!r}: write the cost as a share of the reference, such as {gate.name}<=0.1x"
        )
    return gate.limit


def _loss(gate: Gate, metric: Metric) -> float:
    """Return the loss that a line on the metric allows: `auc>=-0.001` and `logloss<=0.001` both allow 0.001."""
    if gate.at_most == metric.higher_is_better:
        sign = ">=-" if metric.higher_is_better else "<="
        raise ConfigError(f"budget {gate.text!r}: write the loss that you accept, such as {gate.name}{sign}0.001")
    return -gate.limit if metric.higher_is_better else gate.limit
