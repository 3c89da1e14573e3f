"""Choosing among the tokens of one picture: best by score, evenly spaced, at random, or a varied set.

Every function returns places among the n tokens it was given, int64, ascending.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def best(scores: Tensor, keep: int) -> Tensor:
    """Return the places of the `keep` largest of scores [n]; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:keep].sort().values


def even(tokens: int, keep: int) -> Tensor:
    """Return `keep` places spread over `tokens`, each in the middle of its stretch."""
    return (2 * torch.arange(keep) + 1) * tokens // (2 * max(1, keep))


def on_grid(cells: Tensor, grid: tuple[int, int] | None, stride: int) -> Tensor:
    """Return the places of the tokens whose cell lies on every `stride`-th row and column, [::stride, ::stride].

    Args:
        cells: int64 [n], index of each token in its picture, rows one after another.
        grid: of the picture; where it is not known every stride**2-th token is taken.
    """
    if grid is None:
        return (cells % stride**2 == 0).nonzero()[:, 0]
    rows, columns = cells // grid[1], cells % grid[1]
    return ((rows % stride == 0) & (columns % stride == 0)).nonzero()[:, 0]


def determinant(features: Tensor, relevance: Tensor | None, keep: int) -> Tensor:
    """Return a set that is relevant and varied: the greedy maximum of det(diag(r) S diag(r)), S the cosines.

    The determinantal choice of CDPruner (arXiv 2506.10967), by the incremental Cholesky rows of Chen et al. (arXiv
    1709.05135): keep * n * (width + keep / 2) multiply-adds, no n x n matrix.

    Where no token is left that differs from those chosen (more are kept than features have dimensions), the most
    relevant ones fill the set.

    Args:
        features: [n, width].
        relevance: [n], at least 0; None: all are equally relevant.
    """
    unit = F.normalize(features.float(), dim=-1)
    if relevance is not None:
        unit = unit * relevance.float()[:, None]
    gain = unit.square().sum(-1)
    least = TINY * float(gain.max())
    rows = unit.new_zeros(keep, len(unit))
    chosen: list[int] = []
    for step in range(min(keep, len(unit))):
        place = int(gain.argmax())
        volume = float(gain[place])
        if volume <= least:
            break
        row = unit @ unit[place] - rows[:step].T @ rows[:step, place]
        rows[step] = row / volume**0.5
        gain = gain - rows[step].square()
        gain[place] = -torch.inf
        chosen.append(place)
    return _filled(chosen, relevance, len(unit), min(keep, len(unit))).sort().values


def _filled(chosen: list[int], relevance: Tensor | None, tokens: int, keep: int) -> Tensor:
    """Return `keep` places: those chosen, and of the others, which add no volume, the most relevant."""
    places = torch.tensor(chosen, dtype=torch.int64)
    left = torch.ones(tokens) if relevance is None else relevance.float().cpu().clone()
    left[places] = -torch.inf
    return torch.cat([places, best(left, keep - len(chosen))])


TINY = 1e-6
"""Of the largest length: below it a token adds nothing to the volume of the set that float32 could tell."""


def to_unit(scores: Tensor) -> Tensor:
    """Bring scores [n] to the range from 0 to 1, as CDPruner does with relevance; equal ones become 1."""
    low, high = scores.min(), scores.max()
    return torch.ones_like(scores) if high <= low else (scores - low) / (high - low)
