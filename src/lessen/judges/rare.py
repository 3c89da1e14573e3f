"""The suite `rare`: do ids and classes that training hardly saw pay for the compression?

Units are put into five bins by how often their id (or their class) occurs in the train split: never, 1 to 4, 5 to 19,
20 to 99 times, and more. Hashing, pruning of rows and low rank save on the rare; their mean over a test set full of
frequent ids stays. Classes are ranked by their share of the test split where no train split can be counted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lessen.judges.answers import Answers, read
from lessen.judges.slices import CLASS
from lessen.judges.suite import Section, Suite, SuiteOptions, spoken, table
from lessen.metrics import ACCURACY, Array, Metric, Outcomes
from lessen.metrics.many import mean_interval

EDGES = (1, 5, 20, 100)
BINS = ("never seen", "seen 1 to 4 times", "seen 5 to 19 times", "seen 20 to 99 times", "seen 100 times and more")
LEAST = 10
"""Units below which a bin is left out."""


class Rare(Suite):
    """Loss of units by how often their id or class was seen in training, each bin beside the most frequent one."""

    name, question = "rare", "Do rare ids and classes pay for it?"
    metrics: Mapping[str, Metric] = {"accuracy": ACCURACY}
    Options = SuiteOptions
    always = 4

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return the loss in each bin; caught is a bin that loses more than the most frequent one."""
        found = read(before, after, self.name)
        if found.losses is None:
            raise self.refuse("the outcomes hold no loss of each unit")
        bins = self._bins(found)
        if not bins:
            raise self.refuse(f"task {self.task.name!r} gives no ids and no classes whose frequency could be counted")
        losses = found.losses[1] - found.losses[0]
        tested = sum(max(0, len(_filled(codes)) - 1) for codes, _ in bins.values())
        rows, caught, figures = [], [], []
        for name, (codes, words) in bins.items():
            filled = _filled(codes)
            for at in filled:
                own, base = losses[codes == at], losses[codes == filled[-1]]
                value = float(own.mean() - base.mean())
                low, high = mean_interval(own, base, tested) if at != filled[-1] else (0.0, 0.0)
                said = spoken(value, low, high) if at != filled[-1] else "-"
                rows.append((name, words[at], f"{len(own)}", f"{own.mean():+.4f}", said))
                figures.append(
                    {
                        "by": name,
                        "bin": words[at],
                        "units": len(own),
                        "loss": float(own.mean()),
                        "excess": value,
                        "low": low,
                        "high": high,
                    }
                )
                if low > 0:
                    caught.append(f"{name} {words[at]} loses more than the frequent: {found.loss} {said}")
        columns = (
            "by",
            "bin",
            "units",
            f"{found.loss}, compact less uncompressed",
            "more than the most frequent [95 %]",
        )
        lines = (f"Intervals hold for all {tested} comparisons at once (Bonferroni).",)
        return Section(self.name, self.question, tuple(caught), lines, (table("", columns, rows),), {"bins": figures})

    def _bins(self, found: Answers) -> dict[str, tuple[Array, tuple[str, ...]]]:
        test, train = self.task.slices("test"), self.task.slices("train")
        bins: dict[str, tuple[Array, tuple[str, ...]]] = {
            name: (_by_count(np.asarray(train[name]), np.asarray(test[name])), BINS) for name in test if name in train
        }
        if found.kind == "classes" and found.wanted is not None and _uneven(found.wanted):
            bins[CLASS] = (
                _by_rank(found.wanted),
                ("the rarest third of the classes", "the middle", "the most frequent"),
            )
        return {name: each for name, each in bins.items() if len(_filled(each[0])) > 1}


def _by_count(train: Array, test: Array) -> Array:
    kinds, counts = np.unique(train, return_counts=True)
    place = np.minimum(np.searchsorted(kinds, test), len(kinds) - 1)
    seen = np.where(kinds[place] == test, counts[place], 0)
    return np.searchsorted(EDGES, seen, side="right")


def _by_rank(classes: Array) -> Array:
    """Return 0 for the rarest third of the classes, 2 for the most frequent."""
    kinds, codes, counts = np.unique(classes, return_inverse=True, return_counts=True)
    rank = np.empty(len(kinds), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(kinds))
    return (3 * rank // len(kinds))[codes.reshape(-1)]


def _uneven(classes: Array) -> bool:
    """Say whether the most frequent class has twice the examples of the rarest: else none is rare."""
    counts = np.unique(classes, return_counts=True)[1]
    return len(counts) > 2 and bool(counts.max() >= 2 * counts.min())


def _filled(codes: Array) -> list[int]:
    counts = np.bincount(codes)
    return [at for at in range(len(counts)) if counts[at] >= LEAST]
