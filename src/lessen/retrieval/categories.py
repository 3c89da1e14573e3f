"""A tree of categories over vectors, by k-means inside k-means: paths for documents that nobody filed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 20


def nested(vectors: Tensor, counts: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Return the number of each row's category at each level, for vectors float [n, d].

    Args:
        counts: categories of each level inside one of the level above; fewer where there are fewer rows.
    """
    generator = torch.Generator().manual_seed(seed)
    paths: list[list[int]] = [[] for _ in range(len(vectors))]
    _split(F.normalize(vectors.float(), dim=1), torch.arange(len(vectors)), list(counts), paths, generator)
    return paths


def _split(unit: Tensor, rows: Tensor, counts: list[int], paths: list[list[int]], generator: torch.Generator) -> None:
    if not counts:
        return
    own = clustered(unit[rows], counts[0], generator)
    for number in torch.unique(own).tolist():
        inside = rows[own == number]
        for row in inside.tolist():
            paths[row].append(number)
        _split(unit, inside, counts[1:], paths, generator)


def clustered(unit: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the number of each row's nearest centre, int64 [n], after rounds of k-means by cosine."""
    count = min(count, len(unit))
    chosen = [int(torch.randint(len(unit), (), generator=generator))]
    for _ in range(count - 1):  # the row farthest from all centres so far
        chosen.append(int((unit @ unit[chosen].t()).amax(dim=1).argmin()))
    centres = unit[chosen]
    own = (unit @ centres.t()).argmax(dim=1)
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, own, unit)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
        before, own = own, (unit @ centres.t()).argmax(dim=1)
        if torch.equal(before, own):
            break
    return own
