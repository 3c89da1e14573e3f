"""NSGA-II over genomes of whole numbers, for predictions that cost nothing.

Source: Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE TEC 6(2). Differs: options
of a slot have no order, so that children take each gene from one parent and a mutated gene is drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lessen.search.pareto import crowding, ranks

POPULATION, GENERATIONS = 60, 60


def evolve(
    widths: Sequence[int],
    objectives: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    draw: np.random.Generator,
) -> np.ndarray:
    """Return the last population, int64 [POPULATION, slots].

    Args:
        objectives: genomes [n, slots] to two figures to be small [n, 2].
        start: genomes that are known to be good [k, slots]; the others are drawn.
    """
    limits = np.asarray(widths)
    fresh = draw.integers(0, limits, (max(0, POPULATION - len(start)), len(limits)))
    people = np.concatenate([start[:POPULATION].reshape(-1, len(limits)), fresh])
    values = objectives(people)
    for _ in range(GENERATIONS):
        children = _children(people, values, limits, draw)
        everyone = np.concatenate([people, children])
        scores = np.concatenate([values, objectives(children)])
        _, first = np.unique(everyone, axis=0, return_index=True)
        everyone, scores = everyone[first], scores[first]
        levels = ranks(scores)
        order = np.lexsort((-crowding(scores, levels), levels))[:POPULATION]
        people, values = everyone[order], scores[order]
    return people


def _children(people: np.ndarray, values: np.ndarray, limits: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    levels = ranks(values)
    alone = crowding(values, levels)
    pairs = draw.integers(0, len(people), (2, POPULATION, 2))
    first, second = pairs[..., 0], pairs[..., 1]
    better = (levels[first] < levels[second]) | ((levels[first] == levels[second]) & (alone[first] >= alone[second]))
    parents = people[np.where(better, first, second)]
    children = np.where(draw.random((POPULATION, len(limits))) < 0.5, parents[0], parents[1])
    changed = draw.random(children.shape) < 1.0 / len(limits)
    return np.where(changed, draw.integers(0, limits, children.shape), children)
