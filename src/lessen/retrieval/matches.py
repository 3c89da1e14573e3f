"""Cells of two pictures that belong together, and the triplets that they make with cells of others (CFCD).

Source: Zhu et al., ICCV 2023, section 3.3. A cell of the anchor and one of a positive match where the anchor's is the
positive's nearest and the positive's is the anchor's nearest, clearly so (ratio of the two smallest distances), and the
positive's cell is among the stronger half of its picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RATIO, MARGIN = 0.9, 0.1
NEGATIVES = 6


def cells_of(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit features [B, H * W, C] of maps [B, C, H, W], and the strength of each cell, [B, H * W]."""
    flat = maps.flatten(2).transpose(1, 2)
    return F.normalize(flat, dim=2), flat.abs().sum(dim=2)


def matched_cells(anchor: Tensor, positive: Tensor, strength: Tensor, ratio: float = RATIO) -> tuple[Tensor, Tensor]:
    """Return the numbers of cells that match, int64 [m] of the anchor and of the positive.

    Args:
        anchor, positive: unit features [n, C]; strength: float [n] of the positive's cells.
    """
    far = torch.cdist(anchor.detach(), positive.detach())
    nearest, back = far.argmin(dim=0), far.argmin(dim=1)  # of each positive cell, of each anchor cell
    cells = torch.arange(len(positive))
    kept = back[nearest] == cells
    if len(anchor) > 1:
        two = far.topk(2, dim=0, largest=False).values
        kept &= two[0] <= ratio * two[1]
    kept &= strength >= strength.median()
    return nearest[kept], cells[kept]


def local_triplets(maps: Tensor, tuples: Sequence[tuple[int, int, Sequence[int]]], margin: float = MARGIN) -> Tensor:
    """Return the mean hinge of all matches and negatives, a scalar; zero, with its graph, where nothing matches.

    Args:
        maps: [B, C, H, W]; tuples: anchor, positive and negatives, rows of the batch.
    """
    cells, strength = cells_of(maps)
    hinges = []
    for anchor, positive, negatives in tuples:
        left, right = matched_cells(cells[anchor], cells[positive], strength[positive].detach())
        if not len(left):
            continue
        own = cells[anchor][left]
        near = (own - cells[positive][right]).square().sum(dim=1)
        for negative in negatives:
            nearest = torch.cdist(own.detach(), cells[negative].detach()).argmin(dim=1)
            far = (own - cells[negative][nearest]).square().sum(dim=1)
            hinges.append(F.relu(near - far + margin))
    return torch.cat(hinges).mean() if hinges else maps.sum() * 0.0


def hard_tuples(labels: Tensor, found: Tensor, generator: torch.Generator) -> list[tuple[int, int, list[int]]]:
    """Return an anchor, a positive and negatives for each row of a batch that has both.

    A negative is with probability a half a row taken for the anchor's class; else, of an anchor that was itself
    taken for another class, a row of that class; else any row of another class.

    Args:
        labels, found: true and predicted classes, int64 [B].
    """
    made = []
    for anchor, own in enumerate(labels.tolist()):
        same = [row for row in (labels == own).nonzero()[:, 0].tolist() if row != anchor]
        others = (labels != own).nonzero()[:, 0].tolist()
        if not same or not others:
            continue
        taken = [row for row in others if int(found[row]) == own]
        wrong = [row for row in others if int(labels[row]) == int(found[anchor])]
        negatives: dict[int, None] = {}
        for _ in range(min(NEGATIVES, len(others))):
            hard = _draw(2, generator) == 0
            pool = taken if taken and hard else wrong if wrong else others
            negatives.setdefault(pool[_draw(len(pool), generator)])
        made.append((anchor, same[_draw(len(same), generator)], list(negatives)))
    return made


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
