"""Pairs of columns on the row sample: redundancy, crosses against the label, and 3MR selection.

Sampled rows come in key order, which is random, so OutRank's shift is a fair draw of chance whatever the file's order.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.log import SILENT, Log
from lessen.selection.ranking.information import Chance, Contingency, ShiftedColumn
from lessen.selection.ranking.rows import Keys, mix
from lessen.selection.ranking.tally import NO_CLASS, Tally

Key = TypeVar("Key")
SCREENED = 20_000
"""Pairs scored on a part of the rows."""
_SCREEN_ROWS = 8_192


@dataclass(frozen=True)
class Redundancy:
    """Two columns that say the same. `share` is 1 when one of them determines the other as well as itself."""

    first: str
    second: str
    information: float
    share: float


@dataclass(frozen=True)
class Cross:
    """A pair of columns taken as one, scored against the label on the sample."""

    first: str
    second: str
    score: float
    synergy: float
    """Score of the pair minus the scores of both columns: what a model without interactions cannot see."""
    z: float
    """Score in standard deviations of chance."""
    synergy_z: float
    """Synergy in deviations of its three scores: the evidence that the two belong together."""
    cardinality: int
    gain: float = float("nan")
    """Drop in held-out log loss when the pair joins a surrogate that has both columns; NaN if not tried."""


@dataclass(frozen=True)
class Tried:
    """How many pairs of columns there are, how many were looked at, and how many of these were scored on all rows."""

    pairs: int
    screened: int
    scored: int

    @property
    def statement(self) -> str:
        """Return that in words."""
        if self.screened == self.pairs:
            looked = f"all {self.pairs:,} pairs of columns"
        else:
            left = self.pairs - self.screened
            looked = f"{self.screened:,} of {self.pairs:,} pairs of columns, drawn at random: {left:,} were not tried"
        return f"crosses: looked at {looked}; the best {self.scored:,} were scored on the whole sample"


class Pairs:
    """The sampled rows, hashed and coded once."""

    def __init__(self, frame: pl.DataFrame, classes: NDArray[np.uint8], seed: int = 0) -> None:
        self.names = list(frame.columns)
        self.hashes = {name: frame[name].hash(seed=0).to_numpy() for name in self.names}
        self.classes = classes
        self.labelled = classes != NO_CLASS
        self.class_counts = np.bincount(classes[self.labelled], minlength=1).astype(np.int64)
        self.chance = Chance(self.class_counts, seed)
        self._coded: dict[str, ShiftedColumn] = {}
        self._own: dict[str, float] = {}

    def coded(self, name: str) -> ShiftedColumn:
        """Return the column as dense codes."""
        if name not in self._coded:
            self._coded[name] = ShiftedColumn(self.hashes[name])
        return self._coded[name]

    def _about_itself(self, name: str) -> float:
        if name not in self._own:
            self._own[name] = self.coded(name).score(self.coded(name))
        return self._own[name]

    def table(self, hashes: Keys) -> Contingency:
        """Return counts of hashed values against the label."""
        tally = Tally(limit=len(hashes) + 1)
        tally.add(hashes[self.labelled], self.classes[self.labelled])
        return tally.contingency(self.class_counts)

    def score(self, hashes: Keys) -> float:
        """Return the corrected score of hashed values."""
        return self.chance.scores(self.table(hashes)).corrected

    def redundancy(self, names: Sequence[str], log: Log = SILENT) -> list[Redundancy]:
        """Return every pair of `names`, most redundant first."""
        pairs = list(itertools.combinations(names, 2))
        result = []
        for done, (first, second) in enumerate(pairs, 1):
            one, two = self.coded(first), self.coded(second)
            # the shift's chance is exact for many values of the column that is shifted by its own counts
            wide, other = (one, two) if len(one.counts) >= len(two.counts) else (two, one)
            information = wide.score(other)
            most = min(self._about_itself(first), self._about_itself(second))
            result.append(Redundancy(first, second, information, information / most if most > 1e-9 else 0.0))
            log.progress("redundancy", done, len(pairs))
        return sorted(result, key=lambda pair: pair.share, reverse=True)

    def crosses(
        self, names: Sequence[str], budget: int, seed: int, log: Log = SILENT, screened: int = SCREENED
    ) -> tuple[list[Cross], Tried]:
        """Return the best `budget` crosses, most synergy first, and how many pairs were looked at.

        Pairs cannot be chosen by the scores of their columns: of a pair that matters only together (XOR) each column
        alone looks like noise. Beyond the budget up to `screened` pairs are scored on a part of the rows, and those of
        most synergy there on all; beyond that, too, pairs are drawn at random.
        """
        pairs = list(itertools.combinations(names, 2))
        every = len(pairs)
        if every > max(budget, screened):
            chosen = np.random.default_rng(seed).choice(every, max(budget, screened), replace=False)
            pairs = [pairs[index] for index in sorted(chosen.tolist())]
        looked_at = len(pairs) if budget else 0
        if len(pairs) > budget:
            part = self.first(_SCREEN_ROWS)
            seen = part._scored(pairs, "screening crosses", log) if budget else []
            pairs = [(cross.first, cross.second) for cross in seen[:budget]]
        return self._scored(pairs, "crosses", log), Tried(every, looked_at, len(pairs))

    def first(self, rows: int) -> Pairs:
        """Return the first `rows` sampled rows, which are an even sample themselves."""
        result = copy.copy(self)
        result.hashes = {name: hashes[:rows] for name, hashes in self.hashes.items()}
        result.classes, result.labelled = self.classes[:rows], self.labelled[:rows]
        result.class_counts = np.bincount(result.classes[result.labelled], minlength=1).astype(np.int64)
        result.chance, result._coded, result._own = Chance(result.class_counts, self.chance.seed), {}, {}
        return result

    def _scored(self, pairs: Sequence[tuple[str, str]], what: str, log: Log) -> list[Cross]:
        alone = {name: self._alone(name) for name in {name for pair in pairs for name in pair}}
        result = []
        for done, (first, second) in enumerate(pairs, 1):
            result.append(self._cross(first, second, alone))
            log.progress(what, done, len(pairs))
        return sorted(result, key=lambda cross: cross.synergy_z, reverse=True)

    def _alone(self, name: str) -> tuple[float, float]:
        """Return the score of a column and its variance under chance; a score below 0 is chance, not information."""
        table = self.table(self.hashes[name])
        return max(self.chance.scores(table).corrected, 0.0), self.chance.spread(table) ** 2

    def _cross(self, first: str, second: str, alone: Mapping[str, tuple[float, float]]) -> Cross:
        table = self.table(cross_hashes(self.hashes[first], self.hashes[second]))
        score, spread = self.chance.scores(table).corrected, self.chance.spread(table)
        synergy = score - alone[first][0] - alone[second][0]
        noise = float(np.sqrt(spread**2 + alone[first][1] + alone[second][1]))
        return Cross(
            first,
            second,
            score,
            synergy,
            z=score / spread if spread > 0 else 0.0,
            synergy_z=synergy / noise if noise > 0 else 0.0,
            cardinality=len(table.values),
        )


def cross_hashes(first: Keys, second: Keys) -> Keys:
    """Return the hash of the pair (first, second): 'a'+'bc' and 'ab'+'c' differ, and so do (a, b) and (b, a)."""
    return mix(mix(first) ^ (second << np.uint64(24) | second >> np.uint64(40)))


def select_3mr(
    relevance: Mapping[str, float],
    redundancy: Sequence[Redundancy],
    crosses: Sequence[Cross],
    count: int,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> list[tuple[str, float]]:
    """Return up to `count` names with their gains: maximal relevance, minimal redundancy, maximal relation.

    Start at the most relevant; then add argmax of rel(f) - alpha * median red(f, g) + beta * median syn(f, g) over the
    chosen g. All three are min-max normalised; a pair that was not scored counts 0. Source: OutRank's 3MR.
    """
    rel = _normalised(relevance)
    red = _normalised({frozenset((r.first, r.second)): r.information for r in redundancy})
    syn = _normalised({frozenset((c.first, c.second)): c.score for c in crosses})
    left, chosen = sorted(rel), list[tuple[str, float]]()
    while left and len(chosen) < count:
        gains = {name: rel[name] for name in left}
        if chosen:
            for name in left:
                pairs = [frozenset((name, other)) for other, _ in chosen]
                gains[name] += beta * float(np.median([syn.get(pair, 0.0) for pair in pairs]))
                gains[name] -= alpha * float(np.median([red.get(pair, 0.0) for pair in pairs]))
        best = max(left, key=lambda name: gains[name])
        chosen.append((best, gains[best]))
        left.remove(best)
    return chosen


def _normalised(values: Mapping[Key, float]) -> dict[Key, float]:
    if not values:
        return {}
    low, high = min(values.values()), max(values.values())
    return {key: (value - low) / (high - low) if high > low else 0.0 for key, value in values.items()}
