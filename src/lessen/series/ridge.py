"""Ridge classification with the penalty chosen by exact leave-one-out, as one linear map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]
PENALTIES = np.logspace(-3, 3, 10)


def fit_ridge(features: Floats, labels: NDArray[np.int64], classes: int) -> tuple[Floats, Floats, float]:
    """Return (weights [p, classes], bias [classes], penalty) for targets +1 and -1.

    Columns are standardised inside and the scaling is folded into the weights. The leave-one-out residual is
    r / (1 - h) for residual r and leverage h (1/n for the intercept included).
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    target = np.where(labels[:, None] == np.arange(classes)[None], 1.0, -1.0)
    level = target.mean(axis=0)
    left, size, right = np.linalg.svd((features - mean) / scale, full_matrices=False)
    projected = left.T @ (target - level)
    best = (np.inf, np.zeros_like(projected), float(PENALTIES[0]))
    for penalty in PENALTIES.tolist():
        shrink = size**2 / (size**2 + penalty)
        residual = target - level - left @ (shrink[:, None] * projected)
        leverage = (left**2) @ shrink + 1.0 / len(features)
        error = float(((residual / np.maximum(1.0 - leverage, 1e-9)[:, None]) ** 2).mean())
        if error < best[0]:
            best = (error, (size / (size**2 + penalty))[:, None] * projected, penalty)
    weights = (right.T @ best[1]) / scale[:, None]
    return weights, level - mean @ weights, best[2]


def ridge_head(features: Tensor, labels: NDArray[np.int64], classes: int) -> tuple[nn.Linear, float]:
    """Return the fitted layer that reads `features` [n, p], and its penalty."""
    weights, bias, penalty = fit_ridge(features.double().numpy(), labels, classes)
    head: nn.Linear = nn.Linear(weights.shape[0], classes, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights.T))
        head.bias.copy_(torch.from_numpy(bias))
    return head.eval(), penalty
