"""A Frontier: measurements of one task gathered over seeds, compared with the reference, judged, and Pareto-sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lessen.costs import STORED, CostKind, cost_kind, cost_kinds
from lessen.errors import ConfigError, DataError, nearest
from lessen.frontier.comparison import Comparison, reference_of
from lessen.frontier.evidence import check_evidence, check_figures
from lessen.frontier.gates import Gate, claim_flags, parse_gates
from lessen.frontier.notebook import html_table
from lessen.frontier.point import Estimate, Point
from lessen.frontier.records import REFERENCE, StudyRecords, check_records, interval, load_study, number
from lessen.frontier.verdict import BETTER, KEPT, UNKNOWN, WITHIN, WORSE, Verdict, judge
from lessen.metrics import Metric, find_metric

DEFAULT_MARGIN = 0.002


class Frontier:
    """Points of one task on one data set, with the margin they are judged by.

    Iterating gives the points, cheapest first, then those that failed.
    """

    def __init__(
        self,
        studies: Sequence[StudyRecords],
        *,
        margin: float | None = None,
        gates: str | Sequence[str] | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        """Compare, judge and sort the recipes of one or several studies.

        Args:
            margin: largest acceptable loss of the first metric; default the study's `margin`, else 0.002.
            gates: budget lines such as `"stored_bytes<=0.1x, auc>=-0.001"`; default the study's `budget`.
            metrics: metrics by the name that the task gives them; default those of the records that are registered.

        Raises:
            DataError: no record, or studies of different tasks or test data.
            ConfigError: a margin that is not above zero, or a gate on something that was not measured.
        """
        self.studies = tuple(studies)
        _check_comparable(self.studies)
        self.metrics = dict(metrics or {})
        self.primary = _primary(self.studies)
        self.margin = _margin(self.studies, margin, self.primary)
        self.doubts: tuple[str, ...] = ()
        self.cost = str(self._setting("cost", STORED.name))
        """The cost that this study is about: the axis of its picture."""
        points = [point for study in self.studies for point in self._study_points(study)]
        self.gates = parse_gates(gates if gates is not None else self._setting("budget", ""))
        _check_gates(self.gates, points)
        judged = [replace(point, gates={gate.text: gate.holds(point) for gate in self.gates}) for point in points]
        self.points: tuple[Point, ...] = tuple(sorted(_labelled(judged), key=_order))

    @classmethod
    def load(
        cls,
        *folders: Path | str,
        margin: float | None = None,
        gates: str | Sequence[str] | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> Frontier:
        """Read the folders that studies wrote; several are joined if they judged the same task on the same data."""
        if not folders:
            raise ConfigError("no folder given; name at least one that `lessen run` wrote to")
        return cls([load_study(folder) for folder in folders], margin=margin, gates=gates, metrics=metrics)

    @classmethod
    def from_records(
        cls,
        records: Iterable[Mapping[str, Any]],
        *,
        margin: float | None = None,
        gates: str | Sequence[str] | None = None,
    ) -> Frontier:
        """Build from measurement objects; without outcomes the intervals come from the seeds alone."""
        checked = check_records([dict(record) for record in records], "the records")
        return cls([StudyRecords(checked)], margin=margin, gates=gates)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def _repr_html_(self) -> str:
        """Return a small table for a notebook."""
        return html_table(self.points, self.primary, self.title(self.primary))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, label: str) -> Point:
        for point in self.points:
            if point.label == label:
                return point
        raise ConfigError(f"no recipe is called {label!r}; {nearest(label, [p.label for p in self.points])}")

    @property
    def measured(self) -> tuple[Point, ...]:
        """Points with at least one measurement."""
        return tuple(point for point in self.points if not point.failed)

    @property
    def costs(self) -> tuple[CostKind, ...]:
        """Kinds of cost that some recipe has, in the order in which they are shown."""
        measured = {name for point in self.measured for name in point.cost}
        return tuple(kind for kind in cost_kinds(sorted(measured)) if kind.name in measured)

    def title(self, metric: str) -> str:
        """Return a metric in words: as its records say, else the title of the registered one, else its name."""
        for study in self.studies:
            told = (study.metrics.get(metric) or {}).get("title")
            if told:
                judge = (study.metrics.get(metric) or {}).get("judge")
                return f"{judge}: {told}" if judge else str(told)
        known = find_metric(metric)
        return metric if known is None else known.title or known.name

    def front(self, cost: str = "stored_bytes", metric: str | None = None) -> tuple[Point, ...]:
        """Return the points that no other point, nor the reference, beats on both axes; cheapest first.

        A point is beaten by one that is at least as good on both and better on one; equal points both stay.
        Points without a value on either axis take no part.
        """
        name = metric or self.primary
        placed = [(point, *place) for point in self.measured if (place := _place(point, cost, name))]
        rivals = [(price, loss) for _, price, loss in placed]
        if cost_kind(cost).unit == "x" or any(cost in point.share for point, _, _ in placed):
            rivals.append((-1.0 if cost_kind(cost).more_is_better else 1.0, 0.0))  # the reference, in units of itself
        best = [row for row in placed if not any(_beats(rival, row[1:]) for rival in rivals)]
        return tuple(row[0] for row in sorted(best, key=lambda row: (row[1], row[2], row[0].label)))

    def best(self, cost: str = "stored_bytes") -> Point | None:
        """Return the cheapest point that is within the margin and holds every gate, or None."""
        fit = [
            point
            for point in self.measured
            if point.verdict in KEPT and all(point.gates.values()) and (point.axis(cost) or 2.0) < 1.0
        ]
        return min(fit, key=lambda point: (point.axis(cost), point.label), default=None)

    @property
    def gates_hold(self) -> bool:
        """True when there is no gate, or when at least one measured recipe holds all of them."""
        return not self.gates or any(all(point.gates.values()) for point in self.measured)

    def count(self, verdict: Verdict) -> int:
        """Return the number of measured recipes with this verdict."""
        return sum(point.verdict == verdict for point in self.measured)

    # -- building ------------------------------------------------------------------------------------------------
    def _setting(self, key: str, default: Any) -> Any:
        for study in self.studies:
            if study.study.get(key) is not None:
                return study.study[key]
        return default

    def _study_points(self, study: StudyRecords) -> list[Point]:
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for record in study.records:
            if record["recipe"] != REFERENCE:
                groups.setdefault((str(record["recipe"]), str(record["recipe_hash"])), []).append(record)
        check_evidence(study, str(study.folder or "the records"))
        compare = Comparison(study, self.metrics)
        check_figures(study, compare.metrics, compare.judges)
        doubt = compare.doubt(self.primary, self.margin)
        if doubt:
            self.doubts = (*self.doubts, f"{study.name}: {doubt}" if len(self.studies) > 1 else doubt)
        resolvable = compare.resolution(self.primary)
        points = []
        for group in groups.values():
            point = _gather(sorted(group, key=lambda record: int(record["seed"])))
            difference = compare.differences(point, group)
            verdict = judge(difference.get(self.primary), self.margin, resolvable, doubt)
            compared = replace(point, difference=difference, judgement=verdict)
            flags = claim_flags(compared, interval(study.noise.get("latency_ratio_ci")))
            points.append(replace(compared, flags=flags))
        return points


def _gather(group: Sequence[Mapping[str, Any]]) -> Point:
    """Average the records of one recipe over its seeds."""
    first, good = group[0], [record for record in group if record["status"] == "ok"]
    steps = tuple(good[0].get("steps") or ()) if good else tuple(first.get("steps") or ())
    families = dict.fromkeys(str(step.get("family", "other")) for step in steps)
    names = dict.fromkeys(name for record in good for name in record.get("cost") or {})
    shares = {name: Estimate.of(_share(record, cost_kind(name)) for record in good) for name in names}
    intervals = [found for r in good if (found := interval((r.get("cost") or {}).get("latency_ratio_ci")))]
    return Point(
        study=str(first["study"]),
        recipe=str(first["recipe"]),
        recipe_hash=str(first["recipe_hash"]),
        label=str(first["recipe"]),
        families=tuple(families) or ("other",),
        seeds=tuple(int(record["seed"]) for record in good),
        errors={int(r["seed"]): str(r.get("error") or "no reason recorded") for r in group if r["status"] != "ok"},
        steps=steps,
        quality=_estimates(good, lambda record: record.get("quality") or {}),
        reference_quality=_estimates(good, lambda record: reference_of(record, "quality")),
        cost=_estimates(good, lambda record: record.get("cost") or {}),
        reference_cost=_estimates(good, lambda record: reference_of(record, "cost")),
        share={name: share for name, share in shares.items() if share is not None},
        curve=str(first["curve"]) if first.get("curve") else None,
        latency_interval=(min(low for low, _ in intervals), max(high for _, high in intervals)) if intervals else None,
    )


def _estimates(
    records: Sequence[Mapping[str, Any]], pick: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Estimate]:
    names = dict.fromkeys(name for record in records for name in pick(record))
    found = {name: Estimate.of(number(pick(record).get(name)) for record in records) for name in names}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _share(record: Mapping[str, Any], kind: CostKind) -> float | None:
    """Return a cost over the reference's: the ratio that was measured in turns, where there is one."""
    cost = record.get("cost") or {}
    after, before = number(cost.get(kind.name)), number(reference_of(record, "cost").get(kind.name))
    if not kind.relative or after is None or not before:
        return None
    paired = number(cost.get(kind.paired)) if kind.paired else None
    return after / before if paired is None else paired


def _place(point: Point, cost: str, metric: str) -> tuple[float, float] | None:
    price, difference = point.axis(cost), point.difference.get(metric)
    if price is None or difference is None:
        return None
    return (-price if cost_kind(cost).more_is_better else price), difference.loss[0]


def _beats(one: tuple[float, float], other: tuple[float, ...]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != tuple(other)


def _order(point: Point) -> tuple[bool, float, str]:
    price = point.axis("stored_bytes")
    return (point.failed, float("inf") if price is None else price, point.label)


def _labelled(points: Sequence[Point]) -> list[Point]:
    """Give each point a label of its own: the recipe, then the study, then the hash."""
    for wider in ("{0.recipe} ({0.study})", "{0.recipe} ({0.study}, {0.recipe_hash})"):
        labels = [point.label for point in points]
        points = [replace(p, label=wider.format(p)) if labels.count(p.label) > 1 else p for p in points]
    return list(points)


def _primary(studies: Sequence[StudyRecords]) -> str:
    for study in studies:
        for record in study.records:
            for source in (record.get("quality") or {}, reference_of(record, "quality")):
                if source:
                    return str(next(iter(source)))
    return "quality"


def _margin(studies: Sequence[StudyRecords], given: float | None, primary: str) -> float:
    """Return the margin of the first metric: the caller's, a study's (one number or one a metric), or the default."""
    margin: Any = given
    for study in studies:
        if margin is None:
            own = study.study.get("margin")
            margin = own.get(primary) if isinstance(own, Mapping) else own
    if margin is None:
        return DEFAULT_MARGIN
    value = number(margin)
    if value is None or value <= 0:
        raise ConfigError(f"margin = {margin!r} is not accepted: give the largest acceptable loss, a number above zero")
    return value


def _check_comparable(studies: Sequence[StudyRecords]) -> None:
    if not studies:
        raise DataError("no study to compare; name at least one folder that `lessen run` wrote to")
    first = studies[0]
    for other in studies[1:]:
        for what, one, two in (
            ("task", first.task_name, other.task_name),
            ("test data", first.fingerprint[:12], other.fingerprint[:12]),
        ):
            if one != two:
                raise DataError(
                    f"{first.folder} and {other.folder} judged different {what} ({one} and {two}); "
                    "their figures cannot be compared: report them apart"
                )


def _check_gates(gates: Sequence[Gate], points: Sequence[Point]) -> None:
    known = {name for point in points for name in (*point.quality, *point.cost)} | {kind.name for kind in cost_kinds()}
    if all(point.failed for point in points):
        return  # metrics of the user's own are known from measurements only
    for gate in gates:
        if gate.name not in known:
            raise ConfigError(f"gate {gate.text!r}: nothing is called {gate.name!r}; {nearest(gate.name, known)}")


__all__ = ["BETTER", "DEFAULT_MARGIN", "UNKNOWN", "WITHIN", "WORSE", "Estimate", "Frontier", "Point"]
