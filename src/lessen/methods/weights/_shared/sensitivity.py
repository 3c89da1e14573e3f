"""What rounding one layer alone does to the loss: by its slopes in one backward pass, or by running the model again.

slopes    sum over tokens of (g . (x D^T))^2, with g the loss's slope at the layer's output, x its input, D the change
          of its weight: the second-order rise of the loss under the empirical Fisher matrix, tokens as independent,
          up to a factor that all layers share. One backward pass a batch serves all layers and widths: O(depth).
loss      the rise of the loss itself, the model run once for each layer and width: O(depth^2), for small models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.stacks import find_stacks
from lessen.errors import NonFiniteError, NothingMatchedError
from lessen.methods.calibration import watching
from lessen.methods.sites import Site
from lessen.methods.weights._shared.curvature import given_to
from lessen.methods.weights._shared.slopes import backward_through_all, backward_through_blocks, without_parameters
from lessen.task import Task

Rounded = Callable[[Any, int], Tensor]
"""Gives the weight [out, in] of a layer at a number of bits."""


def by_slopes(
    model: nn.Module, task: Task, sites: Sequence[Site], widths: Sequence[Sequence[int]], batches: Sequence[Any],
    rounded: Rounded, log: Callable[..., Any],
) -> list[list[float]]:  # fmt: skip
    """Return the harm of each site at each of its widths, summed over `batches`. Raises NonFiniteError."""
    harms = [[0.0] * len(own) for own in widths]
    try:
        stacks = find_stacks(model)
    except NothingMatchedError:
        stacks = []
    blocks = stacks[0].blocks if len(stacks) == 1 else None
    inside = [n for n, b in enumerate(blocks or ()) if any(site.path.startswith(f"{b.path}.") for site in sites)]

    def taker(number: int) -> Callable[[Tensor, Tensor], None]:
        def take(given: Tensor, slope: Tensor) -> None:
            layer: Any = sites[number].module
            rows, slopes = given.reshape(-1, given.shape[-1]).float(), slope.reshape(-1, slope.shape[-1]).float()
            if not bool(torch.isfinite(slopes).all() and torch.isfinite(rows).all()):
                raise NonFiniteError(
                    f"calibration data gave NaN or infinity at {sites[number].path}; clean the train split"
                )
            for place, bits in enumerate(widths[number]):
                change = rounded(layer, bits) - layer.weight.detach().float()
                harms[number][place] += float(((rows @ change.t()) * slopes).sum(1).double().square().sum())

        return take

    def hook_of(number: int) -> Callable[..., None]:
        take = taker(number)

        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if output.requires_grad:
                given = given_to(arguments, keywords).detach()
                output.register_hook(lambda slope: take(given, slope.detach()))

        return hook

    hooks = [(site.module, hook_of(number)) for number, site in enumerate(sites)]
    with without_parameters(model), watching(hooks, outputs=True):
        for number, batch in enumerate(batches):
            log("what rounding does, by slopes", number, len(batches))
            if blocks is None:
                backward_through_all(model, task, batch, sites)
            else:
                backward_through_blocks(model, task, batch, blocks, inside[0] if inside else len(blocks) - 1)
    return harms


@torch.no_grad()
def by_loss(
    model: nn.Module, task: Task, sites: Sequence[Site], widths: Sequence[Sequence[int]], batches: Sequence[Any],
    rounded: Rounded, log: Callable[..., Any],
) -> list[list[float]]:  # fmt: skip
    """Return the rise of the mean loss for each site at each of its widths; what falls counts as no harm."""

    def loss() -> float:
        return sum(float(task.loss(model, batch)) for batch in batches) / len(batches)

    before, harms = loss(), []
    for number, (site, own) in enumerate(zip(sites, widths, strict=True)):
        log("what rounding does, by the loss", number, len(sites))
        layer, kept = site.module, site.module.weight.detach().clone()
        found = []
        for bits in own:
            layer.weight.copy_(rounded(layer, bits))
            found.append(max(0.0, loss() - before))
            layer.weight.copy_(kept)
        harms.append(found)
    return harms
