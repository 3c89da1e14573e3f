"""Which weights of a matrix stay: a share of them anywhere, or N of every M columns.

    0.5 anywhere    a . b . . c d .     a . . . b c d .     any places, as many as the share says
    2:4             a . b . | . c d .   . a b . | c . d .   two in every run of four columns, none across rows

Equal scores are settled by place: the first stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.stored.linears.sparse_matrix import LONGEST_RUN


@dataclass(frozen=True)
class Pattern:
    """A share of weights anywhere, or N in every run of M columns (then `density` is N / M)."""

    density: float
    n: int | None = None
    m: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return the pattern that "2:4" names. Raises ValueError with what is allowed."""
        parts = text.split(":")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise ValueError(f"a pattern is N:M, such as 2:4, found {text!r}")
        n, m = (int(part) for part in parts)
        if not 1 <= n < m <= LONGEST_RUN:
            raise ValueError(f"N:M needs 1 <= N < M <= {LONGEST_RUN}, found {text}")
        return cls(n / m, n, m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{self.density:g} of the weights"

    def obstacle(self, columns: int) -> str | None:
        """Say why a matrix of so many columns cannot have this pattern, or None."""
        if self.m and columns % self.m:
            return f"its {columns} inputs are no multiple of {self.m}: {self} does not divide them"
        return None

    def kept(self, size: int) -> int:
        """Return how many of `size` weights stay: at least one."""
        return size // self.m * (self.n or 0) if self.m else max(1, round(self.density * size))

    def mask(self, scores: Tensor, by_row: bool = False) -> Tensor:
        """Return which weights stay, bool [rows, columns]: those of the highest scores, float of the same shape.

        Args:
            by_row: without N:M, each row keeps the same share; else the matrix does as a whole.
        """
        rows, columns = scores.shape
        if self.m:
            return highest(scores.reshape(-1, self.m), self.n or 0).view(rows, columns)
        if by_row:
            return highest(scores, self.kept(columns))
        return highest(scores.reshape(1, -1), self.kept(rows * columns)).view(rows, columns)


def highest(scores: Tensor, count: int) -> Tensor:
    """Return the `count` highest of each row, bool [rows, columns]; of equals those that come first."""
    columns = scores.shape[1]
    if count >= columns:
        return torch.ones_like(scores, dtype=torch.bool)
    if columns <= LONGEST_RUN:
        order = scores.argsort(dim=1, descending=True, stable=True)
        made = torch.zeros_like(scores, dtype=torch.bool)
        return made.scatter_(1, order[:, :count], True)
    least = scores.kthvalue(columns - count + 1, dim=1, keepdim=True).values
    above, equal = scores > least, scores == least
    left = count - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= left))
