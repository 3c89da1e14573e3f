"""Our results beside the published ones: is the published figure inside our interval, and what do seeds say?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from lessen.errors import DataError
from lessen.metrics.intervals import student
from lessen.tasks.ctr.bars.recipes import find_sheet

SEEDS_NEEDED = 3


@dataclass(frozen=True)
class Agreement:
    """One metric of one model on one data set, averaged over the seeds that were run."""

    dataset: str
    model: str
    metric: str
    seeds: tuple[int, ...]
    value: float
    low: float
    high: float
    seed_deviation: float | None
    """Standard deviation over our seeds, from two on."""
    published: float | None
    published_deviation: float | None
    """Of the five published seeds, where there are five; AUC only."""
    note: str

    @property
    def inside(self) -> bool | None:
        """Say whether the published figure lies in the interval; None without one."""
        return None if self.published is None else self.low <= self.published <= self.high


def agreement(results: Sequence[dict[str, Any]]) -> list[Agreement]:
    """Compare results of `run_bars` with what was published, AUC and log loss of each model.

    The interval is that over test examples, averaged over seeds; from three seeds on it is widened by the spread over
    seeds, so that it covers what another seed might give: half width sqrt(examples^2 + (t s)^2 (1 + 1/k)).

    Raises:
        DataError: a run is given twice, or runs of one model used different data.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["dataset"], result["model"]), []).append(result)
    rows = []
    for (dataset, model), runs in sorted(groups.items()):
        seeds = [run["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise DataError(f"{dataset} {model}: a seed is given twice; name each result once")
        if len({run["data_fingerprint"] for run in runs}) > 1:
            raise DataError(f"{dataset} {model}: the results were made on different data; compare them one by one")
        rows += [_compare(dataset, model, runs, metric) for metric in ("auc", "logloss")]
    return rows


def _compare(dataset: str, model: str, runs: list[dict[str, Any]], metric: str) -> Agreement:
    values = [float(run["test"][metric]) for run in runs]
    halves = [0.5 * (run["test"][f"{metric}_interval"][1] - run["test"][f"{metric}_interval"][0]) for run in runs]
    value, half, spread = fmean(values), fmean(halves), stdev(values) if len(values) > 1 else None
    if spread is not None and len(values) >= SEEDS_NEEDED:
        half = (half**2 + (student(len(values) - 1) * spread) ** 2 * (1 + 1 / len(values))) ** 0.5
    entry = find_sheet(dataset).models.get(model)
    five = entry.five_auc if entry and metric == "auc" else ()
    return Agreement(
        dataset,
        model,
        metric,
        tuple(run["seed"] for run in runs),
        value,
        value - half,
        value + half,
        spread,
        getattr(entry.published, metric) if entry else None,
        stdev(five) if five else None,
        _note(entry is None, runs),
    )


def _note(unpublished: bool, runs: list[dict[str, Any]]) -> str:
    notes = []
    if unpublished:
        notes.append("no figure was published for this pair")
    if any(not run["published_files"] for run in runs):
        notes.append("not the published files: figures are not comparable")
    if any(run["settings"]["table_updates"] != "dense" for run in runs):
        notes.append("table updates differ from the published dense Adam")
    return "; ".join(notes)
