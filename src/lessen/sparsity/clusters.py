"""Values that many weights share: 1-D k-means from equally spaced values, zero pinned, and training of the values."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def clustered(weight: Tensor, clusters: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return (indices int64 of the weight's shape, codebook float32 [clusters], rising where zero is not pinned).

    Values start equally spaced from the smallest to the largest and move to the mean of their members, at most `steps`
    times; one without members stays. Value 0 belongs to weights that are exactly 0, if there are any; then it never
    moves, and no other weight takes it: a sparse matrix keeps its zeros.
    """
    flat = weight.detach().float().reshape(-1)
    zeros = flat == 0
    pinned = bool(zeros.any())
    values = flat[~zeros] if pinned else flat
    count = clusters - pinned
    if not len(values):
        return torch.zeros(weight.shape, dtype=torch.int64, device=weight.device), flat.new_zeros(clusters)
    book = torch.lerp(values.min(), values.max(), torch.linspace(0, 1, count, device=values.device))
    for _ in range(steps):
        members = nearest(values, book)
        sums = torch.zeros(count, dtype=torch.float64, device=values.device).index_add_(0, members, values.double())
        counts = torch.bincount(members, minlength=count)
        moved = torch.where(counts > 0, (sums / counts.clamp(min=1)).float(), book).sort().values
        if torch.equal(moved, book):
            break
        book = moved
    members = nearest(values, book)
    if not pinned:
        return members.view(weight.shape), book
    indices = torch.zeros(len(flat), dtype=torch.int64, device=weight.device)
    indices[~zeros] = members + 1
    return indices.view(weight.shape), torch.cat([book.new_zeros(1), book])


def nearest(values: Tensor, book: Tensor) -> Tensor:
    """Return the index of the nearest value of a rising codebook, int64, for each value; the lower of two equals."""
    return torch.bucketize(values, (book[1:] + book[:-1]) / 2)


class Shared(nn.Module):
    """A weight that is `codebook[indices]`: the slope of a value is the sum of the slopes of its members.

    Value 0 is zero with `pinned` and stays so.
    """

    indices: Tensor
    pin: Tensor

    def __init__(self, indices: Tensor, codebook: Tensor) -> None:
        super().__init__()
        self.codebook = nn.Parameter(codebook.clone())
        self.register_buffer("indices", indices)
        self.register_buffer("pin", (codebook != 0).float())

    def values(self) -> Tensor:
        """Return the codebook, its zeros pinned."""
        return self.codebook * self.pin

    def forward(self, weight: Tensor) -> Tensor:
        """Return the shared weight, in the type of the given one, whose values it does not use."""
        return self.values()[self.indices].to(weight.dtype)
