"""Linear maps between what layers hold: held-out R2, by one solution for all features at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lessen.metrics import Floats

Truths = NDArray[np.bool_]

RIDGES = (1e-3, 1e-1, 1e1, 1e3)
WIDEST = 256
"""Columns to which wide layers are projected at random, so that no layer explains more for being wide."""


def rows_of(value: Tensor) -> Floats:
    """Return one row an example of what a layer holds: pictures and texts averaged over places.

    [n, width] stays; [n, channels, height, width] is averaged over pixels, [n, tokens, width] over tokens.
    """
    if value.ndim == 4:
        value = value.mean(dim=(2, 3))
    elif value.ndim == 3:
        value = value.mean(dim=1)
    found: Floats = value.reshape(len(value), -1).double().numpy()
    return found


def narrowed(rows: Floats, seed: int = 0) -> Floats:
    """Return rows projected to at most 256 columns by a fixed random matrix."""
    if rows.shape[1] <= WIDEST:
        return rows
    ways = np.random.default_rng(seed).normal(size=(rows.shape[1], WIDEST)) / np.sqrt(WIDEST)
    return np.asarray(rows @ ways)


def held_out_r2(inputs: Floats, targets: Floats, fit: Truths) -> Floats:
    """Return R2 of each target column on the rows that `fit` (truth values) leaves out, by ridge with an intercept.

    The ridge of each column is the best of four on a fifth of the fitting rows, which are then all used.
    """
    own, other = np.flatnonzero(fit), np.flatnonzero(~fit)
    inner, check = own[: 4 * len(own) // 5], own[4 * len(own) // 5 :]
    scores = [_r2(inputs[inner], targets[inner], inputs[check], targets[check], ridge) for ridge in RIDGES]
    best = np.argmax(np.stack(scores), axis=0)
    found = np.stack([_r2(inputs[own], targets[own], inputs[other], targets[other], ridge) for ridge in RIDGES])
    return np.asarray(found[best, np.arange(targets.shape[1])])


def _r2(x: Floats, y: Floats, other: Floats, wanted: Floats, ridge: float) -> Floats:
    centre, middle = x.mean(axis=0), y.mean(axis=0)
    scale = x.std(axis=0) + 1e-12
    z = (x - centre) / scale
    gram = z.T @ z + ridge * np.eye(z.shape[1])
    predicted = (other - centre) / scale @ np.linalg.solve(gram, z.T @ (y - middle)) + middle
    spread = ((wanted - wanted.mean(axis=0)) ** 2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.nan_to_num(1.0 - ((wanted - predicted) ** 2).sum(axis=0) / spread, nan=0.0, neginf=0.0)
    return found


def stages(model: nn.Module, head: str) -> list[str]:
    """Return paths of layers on the way to the head, in the order of the model, the head last: at most eight.

    Items of the lists of blocks that the model has; without such a list, the weight layers themselves.
    """
    blocks = [
        f"{name}.{at}"
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
        for at in range(len(module))
    ]
    if not blocks:
        blocks = [
            name
            for name, module in model.named_modules()
            if name and name != head and not list(module.children()) and any(True for _ in module.parameters())
        ]
    outer = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks if other != name)]
    step = max(1, -(-len(outer) // 7))
    return [*outer[::-1][::step][::-1], head]


def nonnegative_factors(values: Floats, count: int, rounds: int = 200) -> tuple[Floats, Floats]:
    """Return codes [n, count] and a dictionary [count, width], both >= 0, whose product is near `values` >= 0.

    Multiplicative updates (Lee and Seung, 1999) from the nonnegative parts of a singular value decomposition
    (Boutsidis and Gallopoulos, 2008, zeros filled with the mean), so that the same values give the same dictionary.
    """
    left, scale, right = np.linalg.svd(values, full_matrices=False)
    count = min(count, len(scale))
    codes, words = np.zeros((len(values), count)), np.zeros((count, values.shape[1]))
    for at in range(count):
        pairs = [(np.maximum(s * left[:, at], 0), np.maximum(s * right[at], 0)) for s in (1.0, -1.0)]
        one, two = max(pairs, key=lambda pair: float(np.linalg.norm(pair[0]) * np.linalg.norm(pair[1])))
        size = np.sqrt(scale[at] * np.linalg.norm(one) * np.linalg.norm(two))
        codes[:, at] = size * one / max(float(np.linalg.norm(one)), 1e-12)
        words[at] = size * two / max(float(np.linalg.norm(two)), 1e-12)
    codes[codes == 0] = words[words == 0] = 0.01 * float(np.sqrt(values.mean() / max(count, 1)))
    for _ in range(rounds):
        codes *= (values @ words.T) / np.maximum(codes @ (words @ words.T), 1e-12)
        words *= (codes.T @ values) / np.maximum((codes.T @ codes) @ words, 1e-12)
    return codes, words


def weight_of(model: nn.Module, head: str) -> Floats | None:
    """Return the weight [classes, width] of a linear head, or None where it is stored in another form."""
    weight = getattr(model.get_submodule(head), "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    return np.asarray(weight.detach().double().cpu().numpy())
