"""What a metric is: columns in, one exact number out, under any weights of the units. Registered by name on definition.

class Hits(MeanMetric):                       # a metric of your own
    name, title, reads = "hits", "hits", ("right",)
    def each(self, outcomes):
        return outcomes["right"].astype(np.float64)

Binary metrics read `score`, logits (any real numbers) [n], and `target`, labels [n] or [n, 2]: label and weight; the
weight may also be a column of its own.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lessen.errors import ConfigError, LessenError, TaskError
from lessen.metrics.outcomes import Array, Outcomes

Floats = NDArray[np.float64]
Groups = NDArray[np.intp]
_CHUNK, _HELD = 50, 20_000_000
"""Rows of weights held at once, and weights in them: 160 MB."""
FEW = 30
"""Units below which a metric without bounds of its own proves nothing."""
RULE = 3.69
"""-log(0.025): where none of n units lost, at most this many in n do, with the confidence of a 95 % interval's end."""
GROUPS = 1000
"""Groups of units that are left out in turn; up to this many units each is a group of its own."""
LARGE, FEW_GROUPS = 200_000, 200
"""Above this many units fewer groups are left out: each pass is long, and its interval is narrow."""


def _register(cls: type[Any], name: str, known: dict[str, Any]) -> None:
    taken = known.get(name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(
            f"a metric called {name!r} exists already ({taken.__module__}.{taken.__qualname__}); "
            f"give {cls.__qualname__} a name of its own"
        )
    known[name] = cls


def _positions(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in kinds for each in inspect.signature(function).parameters.values())


def _from_columns(method: Callable[..., Floats]) -> Callable[..., Floats]:
    """Return a method written for (scores, targets, ...) as one that reads outcomes."""

    @wraps(method)
    def reading(self: Any, outcomes: Outcomes, *rest: Any) -> Floats:
        return method(self, outcomes["score"], outcomes["target"], *rest)

    return reading


class Metric(ABC):
    """A number that judges outcomes."""

    name: str
    title: str = ""
    """In words, for tables and plots; default the name."""
    unit: str = ""
    higher_is_better: bool = True
    reads: tuple[str, ...] = ("score", "target")
    """Columns it needs; "group" is the group of the outcomes."""
    _known: ClassVar[dict[str, type[Metric]]] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Register the class by its name, and let metrics written for scores and targets read outcomes.

        Raises:
            ConfigError: another class has the name, or `__call__` is written for scores and targets.
        """
        super().__init_subclass__(**arguments)
        for method, others in (("weighted", 3), ("each", 2)):
            own = cls.__dict__.get(method)
            if inspect.isfunction(own) and _positions(own) == others + 1:
                setattr(cls, method, _from_columns(own))
        if "__call__" in cls.__dict__ and _positions(cls.__dict__["__call__"]) == 3:
            raise ConfigError(
                f"{cls.__name__}.__call__ takes scores and targets; remove it and write weighted(outcomes, weights)"
            )
        if isinstance(name := cls.__dict__.get("name"), str):
            _register(cls, name, Metric._known)

    def __call__(self, outcomes: Outcomes | Array, targets: Array | None = None) -> float:
        """Return the metric on all units of `outcomes`; two arrays are taken as their columns score and target."""
        judged = outcomes if isinstance(outcomes, Outcomes) else scored(outcomes, targets)
        return float(self._values(judged, np.ones((1, len(judged))))[0])

    @abstractmethod
    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return one value for each row of `weights` [resamples, units]; a resample is a row of counts."""

    def _values(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return what `weighted` gives. Raises TaskError: it failed, or gives something else than a value a row."""
        called = getattr(self, "name", type(self).__name__)
        try:
            found = np.asarray(self.weighted(outcomes, weights), dtype=np.float64)
        except LessenError:
            raise
        except Exception as error:  # a user's own code raises what it likes
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise TaskError(f"the metric {called!r} failed on {len(outcomes)} units: {reason}") from error
        if found.shape != weights.shape[:1]:
            raise TaskError(
                f"the metric {called!r} gives {list(found.shape)} values for {len(weights)} rows of weights; "
                "weighted() returns one number for each row"
            )
        return found

    def left_out(self, outcomes: Outcomes, groups: Groups, count: int) -> Floats:
        """Return the metric without each of `count` groups of units, [count]; `groups` [units] says which is whose.

        NaN where nothing is left to judge.
        """
        found = np.empty(count)
        rows = max(1, min(_CHUNK, _HELD // len(groups)))
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            weights = (groups != np.arange(start, stop)[:, None]).astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                found[start:stop] = self._values(outcomes, weights)
        return found

    def jackknife(self, outcomes: Outcomes) -> Floats:
        """Return the metric on all units, then without each group of them in turn: [1 + groups].

        Units are dealt to groups by their number alone, so that the values of two models on the same units pair.
        """
        groups, count = _dealt(len(outcomes))
        return np.concatenate([[self(outcomes)], self.left_out(outcomes, groups, count)])

    def chance(self, outcomes: Outcomes) -> float | None:  # noqa: ARG002 - for metrics that know it
        """Return what the best answer that ignores the inputs would score, or None where no closed form is known."""
        return None

    def resolution(self, outcomes: Outcomes) -> float:
        """Return the smallest loss that these units can resolve: 0 from 30 units on, below that none at all.

        It keeps five units that two models answer alike from passing as proof; metrics with bounds know better.
        """
        return 0.0 if len(outcomes) >= FEW else float("inf")

    def describe(self) -> dict[str, Any]:
        """Return what a reader of the records needs to know without the class: JSON values only."""
        return {
            "metric": self.name,
            "title": self.title or self.name,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "reads": list(self.reads),
        }


class SumMetric(Metric):
    """A metric that is a function of sums over units, such as a ratio of two: fast to compute without some of them."""

    @abstractmethod
    def sums(self, outcomes: Outcomes) -> Floats:
        """Return what is summed, [units, sums]."""

    @abstractmethod
    def of_sums(self, totals: Floats) -> Floats:
        """Return the metric of weighted sums, [..., sums] to [...]."""

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return the metric of the sums, weighted by `weights` and by the units' own weights, if any."""
        return np.asarray(self.of_sums(own_weights(outcomes, weights) @ self.sums(outcomes)), dtype=np.float64)

    def left_out(self, outcomes: Outcomes, groups: Groups, count: int) -> Floats:
        """Return the metric without each group: what is left of the sums."""
        parts = own_weights(outcomes, np.ones((1, len(outcomes))))[0][:, None] * self.sums(outcomes)
        within = np.stack([np.bincount(groups, column, count) for column in parts.T], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.of_sums(parts.sum(axis=0) - within), dtype=np.float64)


class RatioMetric(SumMetric):
    """One sum over another, of the two columns that the metric reads: every unit counts by what stands below."""

    def sums(self, outcomes: Outcomes) -> Floats:
        """Return both columns."""
        return np.stack([outcomes[name].astype(np.float64) for name in self.reads], axis=1)

    def of_sums(self, totals: Floats) -> Floats:
        """Return the first sum over the second."""
        return np.asarray(totals[..., 0] / totals[..., 1])


class MeanMetric(SumMetric):
    """A metric that is a mean over units: subclasses give the value of each unit."""

    @abstractmethod
    def each(self, outcomes: Outcomes) -> Floats:
        """Return the value of every unit, shape [units]."""

    def sums(self, outcomes: Outcomes) -> Floats:
        """Return value and one for each unit."""
        values = self.each(outcomes)
        return np.stack([values, np.ones(len(values))], axis=1)

    def of_sums(self, totals: Floats) -> Floats:
        """Return the mean."""
        return np.asarray(totals[..., 0] / totals[..., 1])


# -- the registry -------------------------------------------------------------------------------------------------
def find_metric(name: str) -> Metric | None:
    """Return the registered metric called `name`, or None; `recall@10` is `recall` told 10."""
    cls: Any = Metric._known.get(name)
    if cls is None:
        stem, _, argument = name.partition("@")
        cls = Metric._known.get(stem)
        return cls(int(argument)) if cls is not None and argument.isdecimal() else None
    try:
        found: Metric = cls()
        return found
    except TypeError:  # it takes arguments, which a name does not hold
        return None


def describe_metrics(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """Return what a record says about the metrics of a task, by the task's name for each."""
    return {name: metric.describe() for name, metric in metrics.items()}


def check_reads(metrics: Any, columns: Iterable[str] | None, judge: str) -> None:
    """Refuse what is no mapping of metrics, and metrics that need what `judge` does not give; None where not known.

    Raises:
        TaskError: which metric, what it is or which column it lacks.
    """
    if not isinstance(metrics, Mapping) or not metrics:
        raise TaskError(f"{judge} names no metric; give it some by name: metrics = {{'auc': lessen.AUC}}")
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            found = f"the class {metric.__name__}" if isinstance(metric, type) else f"a {type(metric).__name__}"
            raise TaskError(
                f"the metric {name!r} of {judge} is {found}, not an instance of lessen.metrics.Metric; see MeanMetric "
                "for one of your own"
            )
    if columns is None:
        return
    known = tuple(columns)
    for name, metric in metrics.items():
        missing = [column for column in metric.reads if column not in known]
        if missing:
            raise TaskError(
                f"the metric {name!r} reads {missing[0]!r}, which {judge} does not give (it gives {', '.join(known)}); "
                "add the column to its outcomes or remove the metric"
            )


# -- columns ------------------------------------------------------------------------------------------------------
def scored(scores: Array, targets: Array | None) -> Outcomes:
    """Return outcomes of the columns score and target.

    Raises:
        TaskError: targets are missing, or lengths differ.
    """
    if targets is None:
        raise TaskError("a metric is called with outcomes, or with scores and targets; the targets are missing")
    if len(scores) != len(targets):
        raise TaskError(f"{len(scores)} scores for {len(targets)} labels: a metric needs one score an example")
    return Outcomes({"score": np.asarray(scores), "target": np.asarray(targets)})


def clicks(outcomes: Outcomes, need_both: bool = True) -> tuple[Floats, Floats]:
    """Return logits and labels of binary outcomes, float64 [n] each. Raises TaskError as `binary` does."""
    return binary(outcomes["score"], outcomes["target"], need_both)


def own_weights(outcomes: Outcomes, weights: Floats) -> Floats:
    """Return resampling weights [resamples, n] times the units' own: a column `weight`, or targets [n, 2].

    Raises:
        TaskError: a weight is negative, or all of them are zero.
    """
    if "weight" in outcomes.columns:
        return weighed(np.stack([np.zeros(len(outcomes)), outcomes["weight"]], axis=1), weights)
    return weighed(outcomes["target"], weights) if _pairs_of_label_and_weight(outcomes) else weights


def _pairs_of_label_and_weight(outcomes: Outcomes) -> bool:
    target, score = outcomes.columns.get("target"), outcomes.columns.get("score")
    single = score is not None and score.size == len(score)
    return single and target is not None and target.ndim == 2 and target.shape[1] == 2


def split_targets(targets: Array) -> tuple[Floats, Floats | None]:
    """Return labels and weights, float64 [n] each, of targets [n], or [n, 2] with the weight in the second column.

    Raises:
        TaskError: a weight is negative or not finite.
    """
    values = np.asarray(targets, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:
        return values.reshape(-1), None
    weights = values[:, 1]
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise TaskError("a weight of an example is negative, NaN or infinite; weights count how often it was seen")
    return values[:, 0], weights


def weighed(targets: Array, weights: Floats) -> Floats:
    """Return resampling weights [resamples, n] times the examples' own, if they have any.

    Raises:
        TaskError: all weights of the examples are zero.
    """
    own = split_targets(targets)[1]
    if own is not None and len(own) and not own.any():
        raise TaskError("all weights of the examples are zero, so that no metric exists")
    return weights if own is None else weights * own


def binary(scores: Array, targets: Array, need_both: bool = True) -> tuple[Floats, Floats]:
    """Return scores and labels as float64 [n].

    Raises:
        TaskError: their lengths differ, a label is not 0 or 1, or `need_both` and one class only has weight.
    """
    flat = np.asarray(scores, dtype=np.float64).reshape(-1)
    labels, weights = split_targets(targets)
    if len(flat) != len(labels):
        raise TaskError(f"{len(flat)} scores for {len(labels)} labels: a binary metric needs one score an example")
    values = np.unique(labels)
    if not np.isin(values, (0.0, 1.0)).all():
        raise TaskError(f"binary labels must be 0 or 1, found {values[:5].tolist()}")
    present = values if weights is None else np.unique(labels[weights > 0])
    if need_both and len(present) < 2:
        only = present.tolist() or "no examples"
        raise TaskError(f"AUC needs both classes, the labels hold only {only}; use a larger or different split")
    return flat, labels


def _dealt(units: int) -> tuple[Groups, int]:
    """Return the group of each unit, and how many there are: of equal size, in an order that no data follow."""
    count = min(units, GROUPS if units <= LARGE else FEW_GROUPS)
    order = np.arange(units) if count == units else np.random.default_rng(units).permutation(units)
    return order % count, count


def bootstrap_weights(examples: int, resamples: int, seed: int = 0) -> Floats:
    """Return bootstrap counts [resamples, examples]: each row resamples `examples` with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(examples, np.full(examples, 1.0 / examples), size=resamples).astype(np.float64)
