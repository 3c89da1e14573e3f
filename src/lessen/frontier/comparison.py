"""Quality differences of one study against its own reference: paired where outcomes were kept, else over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lessen.errors import TaskError
from lessen.frontier.point import Point
from lessen.frontier.records import REFERENCE, StudyRecords, interval, number
from lessen.frontier.verdict import Difference, PairedBootstrap, difference_over_seeds, no_better_than_chance
from lessen.metrics import Floats, Metric, Outcomes, find_metric


class Comparison:
    """Quality differences of one study; the reference's resamples are computed once."""

    def __init__(self, study: StudyRecords, metrics: Mapping[str, Metric] | None = None) -> None:
        """Compare by `metrics` and, for names that are not among them, by the registered ones of the records."""
        self.study, self.metrics = study, {**_registered(study), **(metrics or {})}
        self.judges = {name: str(told.get("judge", "")) for name, told in self.study.metrics.items()}
        self._units: dict[str, tuple[Outcomes, PairedBootstrap] | None] = {}
        self._reference: dict[tuple[str, int], Floats | None] = {}

    def _judged(self, metric: str) -> tuple[Outcomes, PairedBootstrap] | None:
        """Return the reference's outcomes under the judge of a metric, and resamples of its units, or None."""
        judge = self.judges.get(metric, "")
        if judge not in self._units:
            seeds = sorted({int(record["seed"]) for record in self.study.records})
            found = (self.study.outcomes(REFERENCE, seed, judge) for seed in seeds)
            first = next((outcomes for outcomes in found if outcomes is not None), None)
            self._units[judge] = None if first is None else (first, PairedBootstrap(first))
        return self._units[judge]

    def doubt(self, metric: str, margin: float) -> str:
        """Return why this study cannot be judged at all, or an empty string."""
        noise = interval((self.study.noise.get("quality") or {}).get(metric))
        if noise and max(abs(noise[0]), abs(noise[1])) > margin:
            return (
                f"the A/A run of the uncompressed model moves {metric} by up to "
                f"{max(abs(noise[0]), abs(noise[1])):.2g}, more than the margin of {margin:g}"
            )
        judged = self._judged(metric)
        if metric not in self.metrics or judged is None:
            return ""
        seeds = sorted({int(record["seed"]) for record in self.study.records})
        try:
            values = {seed: found for seed in seeds if (found := self._reference_values(metric, seed)) is not None}
            if values and no_better_than_chance(self.metrics[metric], values, judged[0]):
                return f"the reference's {metric} is no better than a constant answer: the baseline is broken"
        except TaskError as error:
            return str(error)
        return ""

    def resolution(self, metric: str) -> float:
        """Return the smallest loss that the test split resolves; 0 where the outcomes were not kept."""
        judged = self._judged(metric)
        if judged is None or metric not in self.metrics:
            return 0.0
        try:
            return self.metrics[metric].resolution(judged[0])
        except TaskError:  # `doubt` says why
            return 0.0

    def differences(self, point: Point, group: Sequence[Mapping[str, Any]]) -> dict[str, Difference]:
        """Return the difference of each metric: bootstrapped where outcomes were kept, else over seeds."""
        found = {}
        for name in point.quality:
            paired = self._paired(point, name)
            if paired is None:
                each = [
                    after - before
                    for record in group
                    if (after := number((record.get("quality") or {}).get(name))) is not None
                    and (before := number(reference_of(record, "quality").get(name))) is not None
                ]
                if each:
                    paired = difference_over_seeds(each, self._higher_is_better(name))
            if paired is not None:
                found[name] = paired
        return found

    def _higher_is_better(self, name: str) -> bool:
        return self.metrics[name].higher_is_better if name in self.metrics else name not in _lower(self.study)

    def _paired(self, point: Point, name: str) -> Difference | None:
        judged = self._judged(name)
        if judged is None or name not in self.metrics:
            return None
        bootstrap, judge = judged[1], self.judges.get(name, "")
        metric, reference, compact = self.metrics[name], {}, {}
        try:
            for seed in point.seeds:
                before, after = self._reference_values(name, seed), self.study.outcomes(point.recipe, seed, judge)
                if before is not None and after is not None:
                    reference[seed], compact[seed] = before, bootstrap.values(metric, after)
        except TaskError:
            return None
        return bootstrap.difference(metric, reference, compact) if compact else None

    def _reference_values(self, name: str, seed: int) -> Floats | None:
        if (name, seed) not in self._reference:
            judged = self._judged(name)
            outcomes = self.study.outcomes(REFERENCE, seed, self.judges.get(name, ""))
            if judged is None or outcomes is None:
                self._reference[name, seed] = None
            else:
                self._reference[name, seed] = judged[1].values(self.metrics[name], outcomes)
        return self._reference[name, seed]


def _registered(study: StudyRecords) -> dict[str, Metric]:
    """Return the metrics of the records that are registered here, by the task's name for each."""
    names = dict.fromkeys(name for record in study.records for name in record.get("quality") or {})
    told = {name: str((study.metrics.get(name) or {}).get("metric", name)) for name in names}
    found = {name: find_metric(metric) for name, metric in told.items()}
    return {name: metric for name, metric in found.items() if metric is not None}


def _lower(study: StudyRecords) -> set[str]:
    """Names of metrics of which less is better, as the records say for metrics of the user's own."""
    return {str(name) for record in study.records for name in record.get("lower_is_better") or ()}


def reference_of(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return one part (quality, quality_ci or cost) of a record's uncompressed model."""
    value = (record.get("reference") or {}).get(key)
    return value if isinstance(value, Mapping) else {}
