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


@torch.no_grad()
def apply_mask(layer: Any, mask: Tensor) -> None:
    """Set the weights that a mask removes to zero."""
    layer.weight.mul_(mask)
