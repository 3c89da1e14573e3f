"""Weights that are masked while they train: parametrisations of a layer, put on and taken off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lessen.sparsity.pattern import Pattern
from lessen.stored.linears.sparse import from_matrix, to_matrix


class Fixed(nn.Module):
    """A mask that stays as it is: what is removed gets no gradient and no decay that anyone sees."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros where it is removed, of the same shape."""
        return weight * self.mask


class Fading(nn.Module):
    """W * (M + (1 - M) D): the N largest of every M count whole, the others D; the mask is made anew at each call.

    It is what is exported in eval mode: the last pattern, D = 0. A weight whose columns the pattern of the day does not
    divide takes the last one.

    Args:
        straight: gradients pass to all weights as if none were scaled (the authors' code), in place of the derivative.
    """

    decay: Tensor
    run: Tensor

    def __init__(self, pattern: Pattern, straight: bool) -> None:
        super().__init__()
        self.pattern, self.straight = pattern, straight
        self.register_buffer("decay", torch.zeros(()))
        self.register_buffer("run", torch.tensor([pattern.n or 1, pattern.m or 2]))

    def move(self, decay: float, pattern: Pattern) -> None:
        """Take the values of a step."""
        self.decay.fill_(decay)
        self.run.copy_(torch.tensor([pattern.n or 1, pattern.m or 2]))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it counts now, of the same shape."""
        if not self.training:
            return weight * mask_of(weight, self.pattern)
        n, m = (int(count) for count in self.run)
        now = Pattern(n / m, n, m)
        mask = mask_of(weight, self.pattern if now.obstacle(weight.shape[1]) else now)
        scale = mask + ~mask * self.decay
        return weight + (weight * scale - weight).detach() if self.straight else weight * scale


class Pulled(nn.Module):
    """SR-STE: W * M forward; all weights take the gradient of W * M, and removed ones are pulled to zero.

    dL/dW = dL/d(W M) + strength * (1 - M) * W            (Zhou et al. 2021, arXiv 2102.04010)
    """

    def __init__(self, pattern: Pattern, strength: float) -> None:
        super().__init__()
        self.pattern, self.strength = pattern, strength

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros where it is removed, of the same shape."""
        made: Tensor = _Pull.apply(weight, mask_of(weight, self.pattern), self.strength)  # type: ignore[no-untyped-call]
        return made


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, mask: Tensor, strength: float) -> Tensor:
        context.save_for_backward(weight, mask)
        context.strength = strength
        return weight * mask

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = context.saved_tensors
        return slopes[0] + context.strength * ~mask * weight, None, None


def mask_of(weight: Tensor, pattern: Pattern) -> Tensor:
    """Return which weights of a layer [out, in, *] are largest under a pattern, bool of the same shape."""
    matrix = pattern.mask(to_matrix(weight.detach().abs()))
    return from_matrix(matrix, tuple(weight.shape[2:]))


@contextmanager
def masked(layers: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Let each layer's weight pass through its parametrisation; afterwards it holds what it trained, unmasked."""
    done: list[Any] = []
    try:
        for layer, form in layers.items():
            parametrize.register_parametrization(layer, "weight", form, unsafe=True)
            done.append(layer)
        yield
    finally:
        for layer in done:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
