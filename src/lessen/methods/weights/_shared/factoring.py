"""Splitting a layer into two thin ones along chosen directions of its output, and choosing how many within a budget.

W [out, in]  ~  U_k (U_k^T W)        bytes k (in + out) in place of in * out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.methods.sites import Site, module_bytes
from lessen.methods.weights._shared.knapsack import Choice, allocate
from lessen.stored.base import StoredModule
from lessen.stored.linears.low_rank import LowRankLinear
from lessen.stored.linears.low_rank_conv import LowRankConv
from lessen.stored.linears.static_int8 import geometry_of

STEPS = 32
"""Ranks of a layer that a budget chooses among, beside the layer as it is."""


@dataclass(frozen=True)
class Directions:
    """Directions of the outputs: energies [out] in falling order, axes [out, out] in columns, mean [out]; float64."""

    energies: Tensor
    axes: Tensor
    mean: Tensor

    def lost(self, rank: int) -> float:
        """Return the share of the energy that this rank gives up."""
        total = float(self.energies.sum())
        return float(self.energies[rank:].sum()) / total if total > 0 else 0.0


def of_weight(layer: Any) -> Directions:
    """Return the directions of a layer's weight alone, as if all inputs were equally likely."""
    left, values, _ = torch.linalg.svd(layer.weight.detach().double().flatten(1), full_matrices=False)
    bias = torch.zeros(len(left), dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    return Directions(values.square(), left, bias)


def factored_bytes(layer: Any, rank: int) -> int:
    """Return the bytes of a layer in two factors."""
    values = rank * (layer.weight[0].numel() + len(layer.weight)) + len(layer.weight)
    return int(values * layer.weight.element_size())


def largest_rank(layer: Any) -> int:
    """Return the largest rank at which two factors are smaller than the layer; 0 where none is."""
    each = layer.weight[0].numel() + len(layer.weight)
    left = module_bytes(layer) // layer.weight.element_size() - len(layer.weight)
    return int(min(max(0, (left - 1) // each), *layer.weight.flatten(1).shape))


@torch.no_grad()
def split(layer: Any, directions: Directions, rank: int) -> StoredModule:
    """Return the best affine map of this rank for outputs that lie along the directions."""
    basis, mean = directions.axes[:, :rank], directions.mean
    weight = layer.weight.double().flatten(1)
    bias = torch.zeros(len(weight), dtype=torch.float64) if layer.bias is None else layer.bias.double()
    shift = basis @ (basis.t() @ (bias - mean)) + mean
    made: Any
    if isinstance(layer, nn.Linear):
        made = LowRankLinear(layer.in_features, layer.out_features, rank)
    else:
        made = LowRankConv({**geometry_of(layer), "bias": True}, rank)
    made = made.to(layer.weight)
    made.down.weight.copy_((basis.t() @ weight).view_as(made.down.weight))
    made.up.weight.copy_(basis.reshape(made.up.weight.shape))
    made.up.bias.copy_(shift)
    return made  # type: ignore[no-any-return]


def ranks_within(sites: Sequence[Site], found: Sequence[Directions], share: float, what: str) -> list[int | None]:
    """Return the rank of each layer, None for one that stays, so that all take `share` of their bytes at most.

    The choice is the one of all such that gives up the least energy, summed over layers as shares of their own.

    Raises:
        BudgetError: even rank 1 everywhere takes more.
    """
    ranks: list[list[int | None]] = []
    choices: list[list[Choice]] = []
    for site, directions in zip(sites, found, strict=True):
        top = largest_rank(site.module)
        own = sorted({max(1, round(top * (step + 1) / STEPS)) for step in range(STEPS)}) if top else []
        ranks.append([*own, None])
        sizes: list[Choice] = [(factored_bytes(site.module, rank), directions.lost(rank)) for rank in own]
        choices.append([*sizes, (module_bytes(site.module), 0.0)])
    budget = int(share * sum(module_bytes(site.module) for site in sites))
    taken = allocate(choices, budget, what)
    return [options[choice] for options, choice in zip(ranks, taken, strict=True)]
