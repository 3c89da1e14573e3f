"""Quality differences of one study against its own reference: paired where outcomes were kept, else bounded.

What the folder holds decides, not what is installed: values of a metric with units left out stand beside the outcomes,
its chance and resolution in the records. Only folders of earlier versions are judged by the metric itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lessen.errors import DataError, TaskError
from lessen.frontier.point import Point
from lessen.frontier.records import REFERENCE, StudyRecords, interval, number
from lessen.frontier.verdict import Difference, difference_over_seeds, no_better_than_chance, paired_difference
from lessen.metrics import Floats, Metric, Outcomes, chance_of, find_metric
from lessen.metrics.intervals import Z


class Comparison:
    """Quality differences of one study; what is known of a model is computed once."""

    def __init__(self, study: StudyRecords, metrics: Mapping[str, Metric] | None = None) -> None:
        """Compare by what the folder holds; where it holds no values, by `metrics`, then by those of the names."""
        self.study, self.metrics = study, {**_registered(study), **(metrics or {})}
        self.judges = {name: str(told.get("judge", "")) for name, told in self.study.metrics.items()}
        self._units: dict[str, Outcomes | None] = {}
        self._values: dict[tuple[str, str, int], Floats | None] = {}

    def doubt(self, metric: str, margin: float) -> str:
        """Return why this study cannot be judged at all, or an empty string."""
        noise = interval((self.study.noise.get("quality") or {}).get(metric))
        if noise and max(abs(noise[0]), abs(noise[1])) > margin:
            return (
                f"the A/A run of the uncompressed model moves {metric} by up to "
                f"{max(abs(noise[0]), abs(noise[1])):.2g}, more than the margin of {margin:g}"
            )
        seeds = sorted({int(record["seed"]) for record in self.study.records})
        try:
            values = {seed: found for seed in seeds if (found := self._of(metric, REFERENCE, seed)) is not None}
            if values and no_better_than_chance(self._chance(metric), values, self._higher_is_better(metric)):
                return f"the reference's {metric} is no better than a constant answer: the baseline is broken"
        except TaskError as error:
            return str(error)
        return ""

    def resolution(self, metric: str) -> float:
        """Return the smallest loss that the test split resolves; 0 where that is unknown."""
        told = self.study.metrics.get(metric) or {}
        if "resolution" in told:
            return float("inf") if told["resolution"] is None else float(told["resolution"])
        judged = self._judged(metric)
        if judged is None or metric not in self.metrics:
            return 0.0
        try:
            return self.metrics[metric].resolution(judged)
        except TaskError:  # `doubt` says why
            return 0.0

    def differences(self, point: Point, group: Sequence[Mapping[str, Any]]) -> dict[str, Difference]:
        """Return the difference of each metric: paired where outcomes were kept, else bounded by the records."""
        found = {}
        for name in point.quality:
            difference = self._paired(point, name) or self._bounded(group, name)
            if difference is not None:
                found[name] = difference
        return found

    def _paired(self, point: Point, name: str) -> Difference | None:
        reference, compact = {}, {}
        try:
            for seed in point.seeds:
                before, after = self._of(name, REFERENCE, seed), self._of(name, point.recipe, seed)
                if before is not None and after is not None:
                    reference[seed], compact[seed] = before, after
        except TaskError:
            return None
        judged = self._judged(name)
        if not compact or judged is None:
            return None
        if len({len(values) for values in (*reference.values(), *compact.values())}) > 1:
            raise DataError(f"{self.study.folder}: {name} of {point.recipe!r} was kept for different numbers of units")
        up, smallest = self._higher_is_better(name), self.resolution(name)
        return paired_difference(reference, compact, len(judged), up, smallest)

    def _bounded(self, group: Sequence[Mapping[str, Any]], name: str) -> Difference | None:
        """Compare by the records alone: what seeds share through their examples is bounded by `_deviation`."""
        each, bounds = [], []
        for record in group:
            after, before = number(_part(record, "quality").get(name)), number(reference_of(record).get(name))
            if after is not None and before is not None:
                each.append(after - before)
                bounds.append(_deviation(record, name))
        return difference_over_seeds(each, bounds, self._higher_is_better(name)) if each else None

    def _of(self, name: str, recipe: str, seed: int) -> Floats | None:
        """Return the values of a metric on all units and without each group of them, or None where that is unknown."""
        key = (name, recipe, seed)
        if key not in self._values:
            judge = self.judges.get(name, "")
            self._values[key] = self.study.jackknife(name, recipe, seed, judge)
            if self._values[key] is None and name in self.metrics:
                outcomes, units = self.study.outcomes(recipe, seed, judge), self._judged(name)
                if outcomes is not None and units is not None:
                    units.check_same_units(outcomes)
                    self._values[key] = self.metrics[name].jackknife(outcomes)
        return self._values[key]

    def _judged(self, metric: str) -> Outcomes | None:
        """Return the reference's outcomes under the judge of a metric, or None."""
        judge = self.judges.get(metric, "")
        if judge not in self._units:
            seeds = sorted({int(record["seed"]) for record in self.study.records})
            found = (self.study.outcomes(REFERENCE, seed, judge) for seed in seeds)
            self._units[judge] = next((outcomes for outcomes in found if outcomes is not None), None)
        return self._units[judge]

    def _chance(self, metric: str) -> float | None:
        """Return what an answer that ignores the inputs would score: as recorded, else by the metric."""
        told, judged = self.study.metrics.get(metric) or {}, self._judged(metric)
        if "chance" in told:
            return number(told["chance"])
        return chance_of(self.metrics[metric], judged) if judged is not None and metric in self.metrics else None

    def _higher_is_better(self, name: str) -> bool:
        told = (self.study.metrics.get(name) or {}).get("higher_is_better")
        if isinstance(told, bool):
            return told
        return self.metrics[name].higher_is_better if name in self.metrics else name not in _lower(self.study)


def _registered(study: StudyRecords) -> dict[str, Metric]:
    """Return the metrics of the records that are registered here, by the task's name for each."""
    names = dict.fromkeys(name for record in study.records for name in record.get("quality") or {})
    told = {name: str((study.metrics.get(name) or {}).get("metric", name)) for name in names}
    found = {name: find_metric(metric) for name, metric in told.items()}
    return {name: metric for name, metric in found.items() if metric is not None}


def _lower(study: StudyRecords) -> set[str]:
    """Names of metrics of which less is better, as the records say for metrics of the user's own."""
    return {str(name) for record in study.records for name in record.get("lower_is_better") or ()}


def _deviation(record: Mapping[str, Any], name: str) -> float | None:
    """Return the deviation of a difference over examples: as recorded, else at most the sum of both models' own."""
    told = number(_part(record, "difference_sd").get(name))
    if told is not None:
        return told
    ends = [interval(side.get(name)) for side in (_part(record, "quality_ci"), reference_of(record, "quality_ci"))]
    known = [pair for pair in ends if pair is not None]
    bound = sum(high - low for low, high in known) / (2.0 * Z)
    return bound if len(known) == 2 and bound > 0 else None  # no error at all says that the examples cannot tell


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def reference_of(record: Mapping[str, Any], key: str = "quality") -> Mapping[str, Any]:
    """Return one part (quality, quality_ci or cost) of a record's uncompressed model."""
    return _part(record.get("reference") or {}, key)
