"""What parts are worth without asking the model twice: the size of their weights, chance, and the slope of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.parts import Part
from lessen.pruning.budget import Values
from lessen.pruning.layout import Layout


@torch.no_grad()
def by_magnitude(layout: Layout) -> Values:
    """Return the sum of the squares of all weights that a part takes with it."""
    heads: dict[str, Tensor] = {}
    units: dict[str, Tensor] = {}
    for layer in layout.layers:
        attention, feeding = layer.block.attention, layer.block.feed_forward
        if attention is not None and layer.groups:
            found = _outputs(attention.query) + 0.0
            total = found.view(layer.groups, -1).sum(1) + _inputs(attention.output).view(layer.groups, -1).sum(1)
            for part in (attention.key, attention.value):
                total = total + _outputs(part).view(layer.groups, -1).sum(1)
            heads[layer.path] = total
        if feeding is not None and layer.hidden:
            units[layer.path] = _inputs(feeding.down) + _outputs(feeding.up)[feeding.rows("up")]
            if feeding.gate is not None:
                units[layer.path] = units[layer.path] + _outputs(feeding.gate)[feeding.rows("gate")]
    return Values(heads, units)


def by_chance(layout: Layout, generator: torch.Generator) -> Values:
    """Return uniform draws."""
    heads = {one.path: torch.rand(one.groups, generator=generator) for one in layout.layers if one.groups}
    units = {one.path: torch.rand(one.hidden, generator=generator) for one in layout.layers if one.hidden}
    return Values(heads, units)


def by_slope(layout: Layout, losses: Iterator[Callable[[], Tensor]]) -> Values:
    """Return the mean square, over examples, of the loss's slope along a factor on each part, taken at 1.

    Args:
        losses: each runs the model on one batch and returns the mean loss.
    """
    with _watched(layout) as factors:
        sums: dict[str, Tensor] = {}
        seen = 0
        for loss in losses:
            factors.clear()
            value = loss()
            names = [name for name, several in factors.items() for _ in several]
            found = torch.autograd.grad(value, [one for several in factors.values() for one in several])
            seen += max(len(one) for one in found)
            for name, gradient in zip(names, found, strict=True):
                square = (gradient * len(gradient)).double().square()
                sums[name] = sums.get(name, 0) + square.flatten(0, -2).sum(0)
    heads = {one.path: sums[f"heads {one.path}"] / seen for one in layout.layers if f"heads {one.path}" in sums}
    units = {one.path: sums[f"units {one.path}"] / seen for one in layout.layers if f"units {one.path}" in sums}
    return Values(heads, units)


@contextmanager
def _watched(layout: Layout) -> Iterator[dict[str, list[Tensor]]]:
    """Multiply parts by ones that gradients reach, fresh at each call, one set an example [batch, ..., parts]."""
    factors: dict[str, list[Tensor]] = {}

    def watch(name: str, each: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> Any:
            given = arguments[0]
            shape = (given.shape[0], *[1] * (given.dim() - 2), given.shape[-1] // each)
            ones = torch.ones(shape, dtype=given.dtype, device=given.device, requires_grad=True)
            factors.setdefault(name, []).append(ones)
            return (given * ones.repeat_interleave(each, -1), *arguments[1:])

        return hook

    handles: list[Any] = []
    try:
        for layer in layout.layers:
            attention, feeding = layer.block.attention, layer.block.feed_forward
            if attention is not None and layer.groups:
                hook = watch(f"heads {layer.path}", layer.columns)
                handles.append(attention.output.module.register_forward_pre_hook(hook))
            if feeding is not None and layer.hidden:
                handles.append(feeding.down.module.register_forward_pre_hook(watch(f"units {layer.path}", 1)))
        yield factors
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def width_by_magnitude(layout: Layout, stack: str) -> Tensor:
    """Return the sum of squares of all weights of a stack's blocks that write or read each dimension, [width]."""
    total = torch.zeros(layout.stacks[stack].width, dtype=torch.float64)
    for layer in layout.of(stack):
        attention, feeding = layer.block.attention, layer.block.feed_forward
        if attention is not None:
            total += _outputs(attention.output).double()
            for part in {p.path: p for p in (attention.query, attention.key, attention.value)}.values():
                total += _inputs(part).double()
        if feeding is not None:
            total += _outputs(feeding.down).double() + _inputs(feeding.up).double()
    return total


def _outputs(part: Part) -> Tensor:
    """Return the sum of squares of each row of a matrix, with its bias."""
    bias = getattr(part.module, part.bias, None)
    rows: Tensor = part.module.weight.float().square().sum(1)
    return rows if bias is None else rows + bias.float().square()


def _inputs(part: Part) -> Tensor:
    columns: Tensor = part.module.weight.float().square().sum(0)
    return columns
