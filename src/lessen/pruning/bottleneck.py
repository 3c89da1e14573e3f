"""Variational information-bottleneck masks: noise on every part, which those that matter learn to keep small.

training   z = mu + sigma e, e ~ N(0, 1), one draw a row          f(x) z
kept       mu^2 > sigma^2, that is log alpha = log(sigma^2 / mu^2) < 0
cost       KL = 1/2 sum log(1 + mu^2 / sigma^2)                   0 only at mu = 0
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TINY = 1e-8


class Bottleneck(nn.Module):
    """Masks on `count` parts. `factor` is by how much mu and log variance move when a parameter moves by one."""

    def __init__(self, count: int, generator: torch.Generator, factor: float = 1.0, variance: float = -9.0) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("start", torch.stack([
            1.0 + 0.01 * torch.randn(count, generator=generator),
            variance + 0.01 * torch.randn(count, generator=generator),
        ]))  # fmt: skip
        self.moved = nn.Parameter(torch.zeros(2, count))

    @property
    def mu(self) -> Tensor:
        """Means [count]."""
        return self.start[0] + self.factor * self.moved[0]  # type: ignore[index]

    @property
    def log_variance(self) -> Tensor:
        """Logarithms of variances [count]."""
        return self.start[1] + self.factor * self.moved[1]  # type: ignore[index]

    def draw(self, like: Tensor) -> Tensor:
        """Return factors for hidden states [*, columns]: one draw for each row, [*, count]."""
        noise = torch.randn(*like.shape[:-1], len(self.mu), device=like.device, dtype=like.dtype)
        return self.mu + (0.5 * self.log_variance).exp() * noise

    def log_alpha(self) -> Tensor:
        """Return log(sigma^2 / mu^2), [count]: negative is kept. Papers that write alpha = mu^2/sigma^2 negate it."""
        return self.log_variance - torch.log(self.mu.square() + TINY)

    def hard(self) -> Tensor:
        """Return mu where a part is kept, 0 elsewhere, [count]."""
        return self.mu * (self.log_alpha() < 0)

    def kept(self, sharpness: float = 10.0) -> Tensor:
        """Return how many parts are kept, softly: the sum of sigmoid(-sharpness log alpha), a scalar."""
        return torch.sigmoid(-sharpness * self.log_alpha()).sum()

    def divergence(self) -> Tensor:
        """Return the KL divergence from the best prior of mean 0, a scalar."""
        return 0.5 * torch.log1p(self.mu.square() / (self.log_variance.exp() + TINY)).sum()


class Budget(nn.Module):
    """The Lagrangian l1 (e - t) + l2 (e - t)^2 of the sparsity e; its multipliers rise by gradient ascent.

    The target t grows linearly from where e starts to `goal` in `ramp` steps. l2 never falls below 0.
    """

    def __init__(self, goal: float, ramp: int, factor: float = 1.0) -> None:
        super().__init__()
        self.goal, self.ramp, self.factor = goal, max(1, ramp), factor
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.multipliers.register_hook(torch.neg)  # type: ignore[no-untyped-call]  # whoever descends on them ascends
        self.first: float | None = None

    def target(self, step: int) -> float:
        """Return t at a step, from 0."""
        first = self.first if self.first is not None else 0.0
        return first + (self.goal - first) * min(1.0, step / self.ramp)

    def forward(self, sparsity: Tensor, step: int) -> Tensor:
        """Return the term to add to the loss."""
        if self.first is None:
            self.first = float(sparsity.detach())
        gap = sparsity - self.target(step)
        first, second = self.factor * self.multipliers
        term: Tensor = first * gap + second.clamp(min=0) * gap.square()
        return term
