"""The suite `slices`: which parts of the test set lose more than the rest, after looking at all of them?

The paired loss of every slice's units is compared with that of all others. Some of hundreds of slices look bad by
chance: the critical value is that of the largest of all their t statistics when the losses are dealt to the units at
random (Westfall and Young, "Resampling-Based Multiple Testing", 1993), so that one false alarm in twenty report cards
is the most there is, however many slices are looked at and however they overlap. The same value widens the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from lessen.errors import ConfigError, TaskError, nearest
from lessen.judges.answers import Answers, read
from lessen.judges.suite import Section, Suite, SuiteOptions, share, spoken, table
from lessen.metrics import ACCURACY, Array, Floats, Metric, Outcomes
from lessen.metrics.exact import exact_interval
from lessen.usercode import guarded

DEALS, FEWEST, DEALT = 400, 100, 20_000_000
"""Deals of the losses to the units at random: fewer, but not below 100, where that would deal more units in all."""
CLASS, GROUP = "class", "group"


class SliceOptions(SuiteOptions):
    """What a user may say of slices."""

    by: list[str] | None = Field(None, description="names to cut by, of those the task knows; None: all of them")
    only: str | None = Field(None, description="one slice, such as 'occupation=3', in place of all")
    least: int = Field(30, ge=2, description="units below which a slice is left out")
    worst: int = Field(10, ge=1, le=1000, description="slices that are shown")
    seed: int = Field(0, ge=0, le=2**31, description="of the random deals")


@dataclass(frozen=True)
class Cut:
    """One way to cut the units: the slice of each, -1 for none, and the slices' names."""

    codes: Array
    names: tuple[str, ...]


class Slices(Suite):
    """Worst slices with intervals corrected for looking at many: fields, classes and groups of the task."""

    name, question = "slices", "Which parts of the test set lose more than the rest?"
    metrics: Mapping[str, Metric] = {"accuracy": ACCURACY}
    Options = SliceOptions
    always = 3

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return the slices that lose most; caught are those that lose more than the rest.

        Raises:
            ConfigError: a slice without examples, or a name that the task does not know.
            CannotAnswer: the task has nothing to cut by.
        """
        found = read(before, after, self.name)
        if found.losses is None:
            raise self.refuse("the outcomes hold no loss of each unit")
        cuts = self._cuts(before, found)
        losses = found.losses[1] - found.losses[0]
        rows, names = [], [name for cut in cuts for name in cut.names]
        means, errors, counts = _excess(losses, cuts)
        critical = _critical(losses, cuts, np.random.default_rng(self.options.seed))
        with np.errstate(invalid="ignore", divide="ignore"):
            order = np.argsort(-np.where(errors > 0, means / errors, np.where(means > 0, np.inf, -np.inf)))
        members = [cut.codes == at for cut in cuts for at in range(len(cut.names))]
        caught, figures = [], []
        for at in order[: self.options.worst]:
            half = critical * errors[at]
            ends = (float(means[at] - half), float(means[at] + half))
            own = losses[members[at]]
            rows.append(
                (
                    names[at],
                    f"{counts[at]}",
                    f"{own.mean():+.4f}",
                    spoken(float(means[at]), *ends),
                    _flips(found, members[at]),
                )
            )
            figures.append(
                {
                    "slice": names[at],
                    "units": int(counts[at]),
                    "loss": float(own.mean()),
                    "excess": float(means[at]),
                    "low": ends[0],
                    "high": ends[1],
                }
            )
            if ends[0] > 0:
                caught.append(f"{names[at]} loses more than the rest: {found.loss} {spoken(float(means[at]), *ends)}")
        lines = [
            f"{len(names)} slices of at least {self.options.least} units; intervals hold for all of them at once "
            f"(critical value {critical:.2f} in place of 1.96)."
        ]
        columns = (
            "slice",
            "units",
            f"{found.loss}, compact less uncompressed",
            "more than the rest [95 %]",
            "answers that changed [95 %]",
        )
        every: dict[str, Any] = {"slices": len(names), "critical": critical, "worst": figures}
        return Section(self.name, self.question, tuple(caught), tuple(lines), (table("", columns, rows),), every)

    def _cuts(self, before: Outcomes, found: Answers) -> list[Cut]:
        with guarded(self.task, f"task {self.task.name!r} cannot be cut; its slices('test') raised"):
            given = self.task.slices("test")
        if not isinstance(given, Mapping):
            raise TaskError(
                f"task {self.task.name!r}: slices(split) must return labels by name, not {type(given).__name__}"
            )
        labels = {str(name): _labels(str(name), values, len(before)) for name, values in given.items()}
        if found.kind == "classes" and found.wanted is not None:
            labels[CLASS] = found.wanted
        if before.group is not None:
            labels[GROUP] = before.group
        if not labels:
            raise self.refuse(
                f"task {self.task.name!r} knows nothing to cut by; give it slices(split) or groups(split)"
            )
        wanted, least = self.options.by, self.options.least
        if self.options.only is not None:
            name, _, value = self.options.only.partition("=")
            _known(name, labels)
            where = labels[name].astype(str) == value
            if not where.any():
                few = ", ".join(sorted(set(labels[name].astype(str)))[:5])
                raise ConfigError(f"slice {self.options.only!r} has no example in the test split; {name} is {few}, ...")
            if where.all() or int(where.sum()) < 2:
                raise ConfigError(
                    f"slice {self.options.only!r} holds {int(where.sum())} of {len(where)} examples: nothing to compare"
                )
            return [Cut(np.where(where, 0, -1), (self.options.only,))]
        for name in wanted or ():
            _known(name, labels)
        cuts = [
            _cut(name, values, least, len(before))
            for name, values in labels.items()
            if wanted is None or name in wanted
        ]
        cuts = [cut for cut in cuts if cut.names]
        if not cuts:
            raise self.refuse(f"no slice holds {least} of the {len(before)} examples; set a smaller least")
        return cuts


def _known(name: str, labels: Mapping[str, Array]) -> None:
    if name not in labels:
        raise ConfigError(f"nothing can be cut by {name!r}; {nearest(name, labels)}")


def _labels(name: str, values: Any, units: int) -> Array:
    """Return labels [units] that can be sorted; of mixed kinds, None among them, the texts. Raises ConfigError."""
    try:
        labels = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, or a tensor on another device
        raise ConfigError(f"slices by {name!r} are no labels: {' '.join(str(error).split())[:200]}") from error
    if labels.ndim != 1 or len(labels) != units:
        found = len(labels) if labels.ndim == 1 else f"{tuple(labels.shape)}"
        raise ConfigError(f"slices by {name!r} hold {found} labels for {units} examples; give one an example")
    return labels.astype(str) if labels.dtype == object else labels


def _cut(name: str, values: Array, least: int, units: int) -> Cut:
    """Return the slices of one name that hold enough units and leave enough over."""
    kinds, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    kept = (counts >= least) & (units - counts >= least)
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    return Cut(number[codes.reshape(-1)], tuple(f"{name}={kind}" for kind in kinds[kept]))


def _excess(losses: Floats, cuts: list[Cut]) -> tuple[Floats, Floats, Array]:
    """Return for each slice its mean loss less that of the rest, the standard error, and its units."""
    parts = [_of_cut(losses, cut) for cut in cuts]
    means, errors, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    return means, errors, counts


def _of_cut(losses: Floats, cut: Cut) -> tuple[Floats, Floats, Array]:
    codes, size = cut.codes + 1, len(cut.names) + 1
    counts = np.bincount(codes, minlength=size)[1:]
    sums = np.bincount(codes, losses, size)[1:]
    squares = np.bincount(codes, losses**2, size)[1:]
    rest = len(losses) - counts
    inside, outside = sums / counts, (losses.sum() - sums) / rest
    within = np.maximum(squares / counts - inside**2, 0.0) / np.maximum(counts - 1, 1)
    beyond = np.maximum(((losses**2).sum() - squares) / rest - outside**2, 0.0) / np.maximum(rest - 1, 1)
    return inside - outside, np.sqrt(within + beyond), counts


def _critical(losses: Floats, cuts: list[Cut], generator: np.random.Generator) -> float:
    """Return the 95 % quantile of the largest |t| of all slices over random deals of the losses; at least 1.96."""
    deals = max(FEWEST, min(DEALS, DEALT // len(losses)))
    largest = np.empty(deals)
    for deal in range(deals):
        means, errors, _ = _excess(generator.permutation(losses), cuts)
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.abs(means) / errors
        known = scores[np.isfinite(scores)]
        largest[deal] = known.max() if len(known) else 0.0
    place = int(np.ceil(0.95 * (deals + 1))) - 1
    return max(1.96, float(np.sort(largest)[place]))


def _flips(found: Answers, members: Array) -> str:
    if found.before is None or found.after is None or found.before.ndim > 1:
        return "-"
    flips, units = int((found.before != found.after)[members].sum()), int(members.sum())
    return share(flips / units, *exact_interval(flips, units))
