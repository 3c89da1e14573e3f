"""Two figures to be small at once: what nothing beats, and how much of the plane it takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def undominated(values: Floats) -> np.ndarray:
    """Return the rows of `values` [n, 2] that no other beats, cheapest first; of equal rows the first."""
    order = np.lexsort((values[:, 1], values[:, 0]))
    kept, least = [], np.inf
    for row in order:
        if values[row, 1] < least:
            kept.append(int(row))
            least = values[row, 1]
    return np.asarray(kept, dtype=np.int64)


def hypervolume(values: Floats, corner: Floats) -> float:
    """Return the area between the front of `values` [n, 2] and `corner` [2]; points beyond the corner count nothing."""
    inside = values[(values < corner).all(1)] if len(values) else values
    if not len(inside):
        return 0.0
    front = inside[undominated(inside)]
    rights = np.append(front[1:, 0], corner[0])
    return float(((rights - front[:, 0]) * (corner[1] - front[:, 1])).sum())


def ranks(values: Floats) -> np.ndarray:
    """Return for each row of `values` [n, 2] how many fronts have to be taken away before it stands on one."""
    found = np.zeros(len(values), dtype=np.int64)
    left = np.arange(len(values))
    level = 0
    while len(left):
        front = left[undominated(values[left])]
        twins = (values[left][:, None, :] == values[front][None, :, :]).all(2).any(1)
        found[left[twins]] = level
        left = left[~twins]
        level += 1
    return found


def crowding(values: Floats, levels: np.ndarray) -> Floats:
    """Return how alone each row stands on its front: the sides of the box to its neighbours, infinite at the ends."""
    found = np.zeros(len(values))
    for level in np.unique(levels):
        rows = np.flatnonzero(levels == level)
        for axis in range(values.shape[1]):
            order = rows[np.argsort(values[rows, axis], kind="stable")]
            span = values[order[-1], axis] - values[order[0], axis] or 1.0
            found[order[[0, -1]]] = np.inf
            found[order[1:-1]] += (values[order[2:], axis] - values[order[:-2], axis]) / span
    return found
