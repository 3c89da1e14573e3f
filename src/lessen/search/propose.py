"""What to measure next: predictors fitted to all that was measured, and the genomes that they promise the most of.

Source: SimQ-NAS (2023, arXiv 2312.13301): one genome for choices of every kind, a predictor for each figure, an inner
NSGA-II on predictions only, and only measured points reported.
Differs: kernel ridge in place of support vectors, chosen by closed-form left-out error; small spaces are listed whole
in place of bred; a round takes the genomes that would add most area to the front, one after another, part of them where
the predictors are in doubt; the first round is a balanced design, every option of a slot equally often, not draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lessen.search.genetic import evolve
from lessen.search.goal import Goal
from lessen.search.pareto import hypervolume, undominated
from lessen.search.predictors import Predictor
from lessen.search.space import Genome, Space

LISTED = 20_000
"""Spaces up to this size are listed whole."""


@dataclass(frozen=True)
class Measured:
    """What a genome cost and lost, as shares and differences to the reference; None where it failed."""

    cost: float | None
    loss: float | None


def propose(
    space: Space,
    measured: Mapping[Genome, Measured],
    count: int,
    *,
    goal: Goal | None = None,
    seed: int = 0,
    known_cost: Mapping[Genome, float] | None = None,
) -> list[Genome]:
    """Return up to `count` genomes that were not measured yet, those that promise most first; empty when none is left.

    Args:
        goal: what the search is for; genomes that are predicted to miss its budget count less.
        known_cost: costs that need no measurement, such as bytes by arithmetic; read in place of predictions.
    """
    draw = np.random.default_rng([seed, len(measured)])
    worked = {genome: m for genome, m in measured.items() if m.cost is not None and m.loss is not None}
    if len(worked) < max(2, min(count, space.size // 2)):
        return _design(space, measured, count, draw)
    pool = _pool(space, worked, known_cost, draw)
    hopeless = _hopeless(measured)
    fresh = [g for g in pool if g not in measured and not hopeless.intersection(enumerate(g))]
    if not fresh:
        return _design(space, measured, count, draw)
    predict = _Predictions(space, worked, known_cost, goal)
    return _chosen(fresh, predict, worked, count, draw)


def _design(space: Space, measured: Mapping[Genome, Measured], count: int, draw: np.random.Generator) -> list[Genome]:
    """Return genomes in which every option of a slot stands as often as any other, give or take one."""
    found: list[Genome] = []
    for _ in range(50):
        columns = [_spread(width, count, draw) for width in space.widths]
        for genome in zip(*columns, strict=True):
            own = tuple(int(pick) for pick in genome)
            if own not in measured and own not in found and any(_steps(space, own)):
                found.append(own)
        if len(found) >= count:
            return found[:count]
    if space.size <= LISTED:
        rest = [g for g in space.genomes() if g not in measured and g not in found and any(_steps(space, g))]
        found += rest[: count - len(found)]
    return found


def _hopeless(measured: Mapping[Genome, Measured]) -> set[tuple[int, int]]:
    """Return the options, by slot, that were measured twice or more and never worked."""
    good = {place for genome, m in measured.items() if m.cost is not None for place in enumerate(genome)}
    bad = Counter(place for genome, m in measured.items() if m.cost is None for place in enumerate(genome))
    return {place for place, count in bad.items() if count >= 2 and place not in good}


def _spread(width: int, count: int, draw: np.random.Generator) -> np.ndarray:
    return np.asarray(draw.permutation(np.resize(draw.permutation(width), count)))


def _steps(space: Space, genome: Genome) -> list[bool]:
    return [slot.options[pick] is not None for slot, pick in zip(space.slots, genome, strict=True)]


def _pool(
    space: Space, worked: Mapping[Genome, Measured], known: Mapping[Genome, float] | None, draw: np.random.Generator
) -> list[Genome]:
    """Return the genomes that are looked at: all of a small space, else what the genetic search breeds."""
    if space.size <= LISTED:
        return [genome for genome in space.genomes() if any(_steps(space, genome))]
    predict = _Predictions(space, worked, known, None)
    genomes = list(worked)
    values = np.array([[worked[g].cost, worked[g].loss] for g in genomes], dtype=np.float64)
    best = [genomes[row] for row in undominated(values)]
    people: set[Genome] = set()
    for _ in range(3):
        bred = evolve(space.widths, lambda rows: predict(_tuples(rows)), np.asarray(best), draw)
        people.update(genome for genome in _tuples(bred) if any(_steps(space, genome)))
    return sorted(people)


def _tuples(rows: np.ndarray) -> list[Genome]:
    return [tuple(int(pick) for pick in row) for row in rows]


class _Predictions:
    """Predicted cost and loss of genomes; one object, so that features are made once a call."""

    def __init__(
        self,
        space: Space,
        worked: Mapping[Genome, Measured],
        known: Mapping[Genome, float] | None,
        goal: Goal | None,
    ) -> None:
        self.space, self.known, self.goal = space, known, goal
        points = space.features(list(worked))
        costs = np.array([m.cost for m in worked.values()], dtype=np.float64)
        losses = np.array([m.loss for m in worked.values()], dtype=np.float64)
        # a loss far beyond what anybody would accept says nothing of the small ones: its tail is drawn in
        self.bend = max(float(np.median(np.abs(losses))), 1e-9) if goal is None else goal.bend
        self.cost = Predictor.fit(points, costs)
        self.loss = Predictor.fit(points, np.arcsinh(losses / self.bend))

    def __call__(self, genomes: Sequence[Genome], doubt: np.ndarray | float = 0.0) -> np.ndarray:
        """Return predicted (cost, bent loss) [n, 2]; `doubt` moves the loss by so many standard deviations."""
        points = self.space.features(genomes)
        costs = (
            self.cost(points)
            if self.known is None
            else np.array([self.known.get(genome, np.nan) for genome in genomes])
        )
        if self.known is not None and np.isnan(costs).any():
            costs = np.where(np.isnan(costs), self.cost(points), costs)
        loss = self.loss(points)
        if np.any(doubt):
            loss = loss + doubt * self.loss.doubt(points)
        return np.stack([costs, loss], axis=1)

    def bent(self, losses: np.ndarray) -> np.ndarray:
        """Return losses on the scale of the predictions."""
        return np.asarray(np.arcsinh(losses / self.bend))


def _chosen(
    fresh: list[Genome],
    predict: _Predictions,
    worked: Mapping[Genome, Measured],
    count: int,
    draw: np.random.Generator,
) -> list[Genome]:
    """Return the genomes whose predictions add most area to the front, each told of those before it."""
    have = np.array([[m.cost, m.loss] for m in worked.values()], dtype=np.float64)
    have[:, 1] = predict.bent(have[:, 1])
    plain, moved = predict(fresh), predict(fresh, draw.standard_normal(len(fresh)))
    corner = np.maximum(np.maximum(have.max(0), plain.max(0)), [1.0, 0.0]) + 1e-9
    found: list[int] = []
    for turn in range(min(count, len(fresh))):
        values = plain if turn % 2 == 0 else moved
        if predict.goal is not None and turn % 4 == 2:
            pick = _nearest_to_goal(plain, predict, found)
        else:
            pick = _most_area(values, have, corner, found)
        found.append(pick)
        have = np.concatenate([have, values[pick : pick + 1]])
    return [fresh[pick] for pick in found]


def _most_area(values: np.ndarray, have: np.ndarray, corner: np.ndarray, taken: Sequence[int]) -> int:
    """Return the row of `values` that adds most area to the front of `have`; where none adds any, the nearest to it."""
    front = have[undominated(have)]
    # only rows that no point of the front beats can add area
    beaten = ((front[None, :, :] <= values[:, None, :]).all(2)).any(1)
    beaten[list(taken)] = True
    rows = np.flatnonzero(~beaten)
    before = hypervolume(front, corner)
    if len(rows):
        gains = [hypervolume(np.concatenate([front, values[row : row + 1]]), corner) - before for row in rows]
        return int(rows[int(np.argmax(gains))])
    span = np.maximum(corner - have.min(0), 1e-12)
    apart = ((values[:, None, :] - front[None, :, :]) / span).max(2).min(1)
    apart[list(taken)] = np.inf
    return int(np.argmin(apart))


def _nearest_to_goal(plain: np.ndarray, predict: _Predictions, taken: Sequence[int]) -> int:
    """Return the row that is predicted to do best by the goal."""
    assert predict.goal is not None
    score = predict.goal.scores(plain[:, 0], np.sinh(plain[:, 1]) * predict.bend)
    score[list(taken)] = np.inf
    return int(np.argmin(score))
