"""Light predictors of a figure from what was measured: linear or kernel ridge, the one that errs less when left out.

Both leave one measurement out in closed form, so that no cross-validation is run: with the smoother S of a ridge, the
error of point i predicted without it is (y - S y)_i / (1 - S_ii).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths that are tried."""
WIDTHS = (0.1, 0.3, 1.0)
"""Of the kernel exp(-width x slots that differ), in differing options."""


@dataclass(frozen=True)
class Predictor:
    """A fitted predictor: `weights` over kernel values to the points that were measured."""

    points: Floats
    weights: Floats
    inverse: Floats
    centre: float
    scale: float
    width: float | None
    """Of the kernel; None: linear."""
    error: float
    """Root of the mean squared error on points left out."""

    @classmethod
    def fit(cls, points: Floats, values: Floats) -> Predictor:
        """Fit on `points` [n, features] and `values` [n], finite, n of 1 or more; deterministic."""
        centre = float(values.mean())
        scale = float(values.std()) or 1.0
        target = (values - centre) / scale
        found: tuple[float, float | None, float] | None = None
        for width in (None, *WIDTHS):
            values_of, vectors = np.linalg.eigh(_kernel(points, points, width))
            turned, squares = vectors.T @ target, vectors**2
            for ridge in RIDGES:
                shrunk = 1.0 / (np.maximum(values_of, 0.0) + ridge)
                left_out = (vectors @ (shrunk * turned)) / (squares @ shrunk)  # the closed form by the inverse
                error = float(np.sqrt(np.mean(left_out**2)))
                if found is None or error < found[0] - 1e-9:
                    found = (error, width, ridge)
        assert found is not None
        error, width, ridge = found
        gram = _kernel(points, points, width)
        inverse = np.asarray(np.linalg.inv(gram + ridge * np.eye(len(points))), dtype=np.float64)
        weights = np.asarray(inverse @ target, dtype=np.float64)
        return cls(points, weights, inverse, centre, scale, width, error)

    def __call__(self, points: Floats) -> Floats:
        """Return predictions [m] for `points` [m, features]."""
        return np.asarray(self.centre + self.scale * (_kernel(points, self.points, self.width) @ self.weights))

    def doubt(self, points: Floats) -> Floats:
        """Return standard deviations [m]: the error when left out, larger where nothing near was measured."""
        cross = _kernel(points, self.points, self.width)
        own = (points**2).sum(1) + 1.0 if self.width is None else np.ones(len(points))
        rest = np.maximum(own - np.einsum("ij,jk,ik->i", cross, self.inverse, cross), 0.0)
        return np.asarray(self.scale * self.error * np.sqrt(1.0 + rest))


def _kernel(left: Floats, right: Floats, width: float | None) -> Floats:
    """Return kernel values [left, right]; the linear one has a constant beside the features."""
    product = left @ right.T
    if width is None:
        return np.asarray(product + 1.0)
    apart = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2.0 * product
    return np.asarray(np.exp(-width * apart))
