"""How a training leads from dense weights to N of M: removed weights fade, or the pattern tightens.

    dense            sparsify                              fine
    |--- D = 1 ---|--- D falls from 1, or frames ---|--- D = 0, N:M ---|       D: what a removed weight still counts

linear        D = max(0, 1 - c t)                        t: steps since the dense phase
exponential   D = exp(-c t)
stepwise      7:8, 4:8, 2:8, 1:8                         frames of equal length, for 1:8
geometric     8:64, 4:32, 2:16, 1:8

Source: MdGf and SdGf of "Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers", arXiv 2402.04744.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lessen.sparsity.pattern import Pattern
from lessen.stored.linears.sparse_matrix import LONGEST_RUN

Kind = Literal["linear", "exponential", "stepwise", "geometric"]
GONE = 0.01
"""What an exponential decay has left of a removed weight when the fine phase starts, unless its rate is given."""
FRAMES = 4
"""Frames of the geometric schedule."""


@dataclass(frozen=True)
class Progress:
    """The point that a training of `steps` steps has reached after some of them.

    Attributes:
        dense, fine: shares of the steps before anything is removed, and with the pattern as it is exported.
        rate: c, a step; none: 1 / sparsify steps, or ln(100) / sparsify steps.
    """

    kind: Kind
    pattern: Pattern
    steps: int
    dense: float = 0.0
    fine: float = 0.2
    rate: float | None = None

    @property
    def first(self) -> int:
        """The step at which the dense phase ends."""
        return round(self.dense * self.steps)

    @property
    def last(self) -> int:
        """The step at which the fine phase starts."""
        return max(self.first, self.steps - round(self.fine * self.steps))

    def decay(self, step: int) -> float:
        """Return D at a step, counted from 0."""
        if step < self.first:
            return 1.0
        if step >= self.last or self.kind not in ("linear", "exponential"):
            return 0.0
        since, span = step - self.first, self.last - self.first
        if self.kind == "linear":
            return max(0.0, 1.0 - (self.rate or 1.0 / span) * since)
        return math.exp(-(self.rate or -math.log(GONE) / span) * since)

    def pattern_at(self, step: int) -> Pattern:
        """Return the pattern at a step: that of the latest frame that has begun."""
        frames = self.frames
        if step >= self.last or len(frames) == 1:
            return self.pattern
        span = self.last - self.first
        return frames[min(max(step - self.first, 0) * len(frames) // max(span, 1), len(frames) - 1)]

    @property
    def frames(self) -> list[Pattern]:
        """The patterns that follow one another in equal parts of the sparsify phase."""
        n, m = self.pattern.n or 1, self.pattern.m or 2
        if self.kind == "stepwise":
            halved = [m // 2**power for power in range(1, int(math.log2(m / n)) + 1) if m // 2**power > n]
            counts = [m - 1, *[count for count in halved if count < m - 1]]
            return [Pattern(count / m, count, m) for count in counts if count > n] + [self.pattern]
        if self.kind == "geometric":
            factors = [2**power for power in reversed(range(FRAMES)) if m * 2**power <= LONGEST_RUN]
            return [Pattern(n / m, n * factor, m * factor) for factor in factors]
        return [self.pattern]
