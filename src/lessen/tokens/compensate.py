"""ToCom (arXiv 2408.06798): low-rank corrections of queries and values, one for each gap between merging rates.

    q <- W_q x + scale * U_q (mu * (D_q x)),  v likewise,  mu = M(target) - M(source) in {-1, 0, 1}

M(r) is 1 on the last k*r of the G*k coordinates, so going from source to target adds the updates of the gaps between
them and going back subtracts them. The branch is folded into the weights at run time and costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.vit import Family, find_tower, part_of
from lessen.errors import InputError


class Branch(nn.Module):
    """The updates of all gaps of one projection: `down` [G*k, C], `up` [C, G*k], zero at first."""

    def __init__(self, width_in: int, width_out: int, columns: int) -> None:
        super().__init__()
        self.down = nn.Linear(width_in, columns, bias=False)
        self.up = nn.Linear(columns, width_out, bias=False)
        nn.init.zeros_(self.up.weight)

    def reset_parameters(self) -> None:
        """Draw the weights anew, as the constructor does."""
        self.down.reset_parameters()
        self.up.reset_parameters()
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, coefficients: Tensor, dropout: float) -> Tensor:
        """Return U (mu * drop(D x))."""
        low: Tensor = nn.functional.dropout(self.down(x), dropout, self.training)
        return torch.as_tensor(self.up(low * coefficients.to(low)))

    def matrix(self, coefficients: Tensor) -> Tensor:
        """Return U diag(mu) D, [C_out, C_in]."""
        return (self.up.weight * coefficients) @ self.down.weight


@dataclass(frozen=True)
class Projection:
    """Some outputs of a linear layer: the queries or the values of a block; fused layers hold the keys between."""

    layer: Any
    first: int
    count: int

    def padded(self, part: Tensor) -> Tensor:
        """Return [*, count] as outputs of the whole layer, with zeros beside it."""
        return nn.functional.pad(part, (self.first, self.layer.out_features - self.first - self.count))


class Compensator(nn.Module):
    """The plug-in of one tower: a branch for the queries and one for the values of every block."""

    def __init__(self, model: nn.Module, *, largest: int, rank: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        tower = find_tower(model)
        self.largest, self.rank, self.dropout = largest, rank, dropout
        attentions = [getattr(block, tower.family.attention) for block in tower.blocks]
        self._projections = [one for attention in attentions for one in _projections(attention, tower.family)]
        self._pieces = [Branch(p.layer.in_features, p.count, largest * rank) for p in self._projections]
        self.branches = nn.ModuleList(self._pieces)

    def reset_parameters(self) -> None:
        """Draw the weights of all branches anew, in their order."""
        for piece in self._pieces:
            piece.reset_parameters()

    def mask(self, rate: int) -> Tensor:
        """Return M(rate), [G*k]. Raises InputError for a rate outside 0..G."""
        if not 0 <= rate <= self.largest:
            raise InputError(f"rate {rate} is outside 0..{self.largest}, which this plug-in was distilled for")
        columns = self.largest * self.rank
        return (torch.arange(columns) >= columns - rate * self.rank).float()

    def coefficients(self, source: int, target: int) -> Tensor:
        """Return mu = M(target) - M(source), [G*k] in {-1, 0, 1}."""
        return self.mask(target) - self.mask(source)

    @contextlib.contextmanager
    def active(self, source: int, target: int, scale: float) -> Iterator[None]:
        """Add the correction to the projections inside the block (how it is trained)."""
        coefficients = self.coefficients(source, target)
        handles = [
            place.layer.register_forward_hook(_adder(place, branch, coefficients, scale, self.dropout))
            for place, branch in zip(self._projections, self._pieces, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def fold(self, source: int, target: int, scale: float) -> None:
        """Add the correction to the weights of the model, for good; the branch is linear, so this is exact."""
        coefficients = self.coefficients(source, target)
        for place, branch in zip(self._projections, self._pieces, strict=True):
            rows = place.layer.weight[place.first : place.first + place.count]
            rows += (scale * branch.matrix(coefficients)).to(rows.dtype)


def _projections(attention: nn.Module, family: Family) -> list[Projection]:
    """Return the queries and the values of a block."""
    if family.fused:
        layer: Any = part_of(attention, family.fused)
        width = layer.out_features // 3
        return [Projection(layer, 0, width), Projection(layer, 2 * width, width)]
    apart: list[Any] = [part_of(attention, name) for name in (family.query, family.value)]
    return [Projection(layer, 0, layer.out_features) for layer in apart]


def _adder(place: Projection, branch: Branch, coefficients: Tensor, scale: float, dropout: float) -> Any:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.as_tensor(output + place.padded(scale * branch(inputs[0], coefficients, dropout)))

    return add
