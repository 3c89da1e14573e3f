"""What a column says when its single values are too thin to tell: rare values as one, missing or not, bins of numbers.

A near-unique value has no score of its own, and many of them drown the heavy value beside them: a device id that is
missing in 90 % of the frauds and 30 % of the rest. Each coarser form is a function of the column, so what it knows of
the label the column knows too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.selection.ranking.information import Chance, Contingency
from lessen.selection.ranking.rows import Keys
from lessen.selection.ranking.scan import ScanState
from lessen.selection.ranking.tally import MAX_CLASSES, NO_CLASS, Tally

RARE = (1, 16, 256)
BINS = (8, 32)
SURE = 0.001
"""Chance of noise, over all forms that were tried, below which a form tells."""


@dataclass(frozen=True)
class Evidence:
    """One form of a column, its score in nats, and the chance that noise scores as high in any form tried."""

    form: str
    score: float
    p_value: float


class Sampled:
    """The sampled rows of a scan, and the chance of their labels."""

    def __init__(self, state: ScanState, seed: int) -> None:
        self.missing = list(state.settings.missing)
        self.frame, _, self.classes = state.sample.rows()
        self.labelled = self.classes != NO_CLASS
        self.counts = np.bincount(self.classes[self.labelled], minlength=MAX_CLASSES).astype(np.int64)[:MAX_CLASSES]
        self.whole = len(self.frame) == state.rows
        self.seed = seed

    @cached_property
    def chance(self) -> Chance:
        """Return the chance model of the sampled labels."""
        return Chance(self.counts, self.seed)

    def tally(self, hashes: Keys) -> Tally:
        """Return the exact counts of hashed values of the sampled rows."""
        tally = Tally(limit=len(hashes) + 1)
        tally.add(hashes, self.classes)
        return tally

    def hashes(self, name: str) -> Keys:
        """Return the hashes of a column."""
        return np.asarray(self.frame[name].hash(seed=0).to_numpy())


def strongest(name: str, tally: Tally, numeric: bool, sampled: Sampled, chance: Chance) -> Evidence | None:
    """Return the form of a column that scores best beyond chance, or None.

    Args:
        tally: all rows if it is exact; otherwise rare values are pooled on the sample.
        chance: of the labels that `tally` counts.
    """
    if name not in sampled.frame.columns:
        return None
    found: list[Evidence] = []
    tried = 0
    for form, table, own in _forms(name, tally, numeric, sampled, chance):
        tried += 1
        if not own.promising(table):
            continue
        scores = own.scores(table)
        p_value = own.tail(table, scores)
        if p_value < SURE and scores.corrected > 0:
            found.append(Evidence(form, scores.corrected, p_value))
    sure = [Evidence(one.form, one.score, one.p_value * tried) for one in found if one.p_value * tried < SURE]
    return max(sure, key=lambda one: one.score, default=None)


def _forms(
    name: str, tally: Tally, numeric: bool, sampled: Sampled, chance: Chance
) -> Iterator[tuple[str, Contingency, Chance]]:
    exact = tally.exact
    counted, own = (tally, chance) if exact else (sampled.tally(sampled.hashes(name)), sampled.chance)
    for most, table in counted.pooled(RARE, own.counts):
        if len(table.values) > 1:
            seen = "values seen once" if most == 1 else f"values seen at most {most} times"
            yield f"{seen} taken as one", table, own
    column = sampled.frame[name]
    absent = (column.is_null() | column.is_in(sampled.missing).fill_null(False)).to_numpy()
    if absent.any() and not absent.all():
        yield "missing or not", _counted(absent.astype(np.int64), 2, sampled), sampled.chance
    if numeric and tally.cardinality > min(BINS):
        values = column.cast(pl.Float64, strict=False).to_numpy().astype(np.float64)
        known = np.isfinite(values)
        ordered = np.sort(values[known])
        for bins in BINS if len(ordered) else ():
            edges = ordered[np.arange(1, bins) * len(ordered) // bins]
            codes = np.where(known, np.searchsorted(edges, values, side="right"), bins)
            yield f"{bins} quantile bins", _counted(codes, bins + 1, sampled), sampled.chance


def _counted(codes: NDArray[np.int64], kinds: int, sampled: Sampled) -> Contingency:
    """Return the counts of small codes against the label."""
    classes = len(sampled.counts)
    pairs = codes[sampled.labelled] * classes + sampled.classes[sampled.labelled]
    table = np.bincount(pairs, minlength=kinds * classes).reshape(kinds, classes)
    table = table[table.sum(axis=1) > 0]
    sizes = (table > 0).sum(axis=1)
    return Contingency(table.sum(axis=1), table[table > 0], sampled.counts, np.cumsum(sizes) - sizes)
