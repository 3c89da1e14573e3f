"""Masks on a whole model: what it computes when parts are taken out, while all weights are still there.

heads    columns that go into the output projection are multiplied
units    what goes into `down` is multiplied
blocks   a block's answer is replaced by what it was given
width    every writer into the stream is multiplied, and norms see the kept dimensions only
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lessen.pruning.choice import Choice
from lessen.pruning.layout import Layout, first_tensor
from lessen.pruning.width import Stream, read_stream, shrink_norm

Hook = Callable[..., Any]


@contextmanager
def gated(layout: Layout, heads: Mapping[str, Tensor], units: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply groups of heads [groups] and units [hidden] by factors, by path of the block.

    Factors are read at each call, so that they may be changed meanwhile.
    """
    handles: list[Any] = []
    try:
        for layer in layout.layers:
            if layer.path in heads and layer.groups and layer.block.attention is not None:
                handles.append(_multiply_input(layer.block.attention.output.module, heads, layer.path, layer.columns))
            if layer.path in units and layer.block.feed_forward is not None:
                handles.append(_multiply_input(layer.block.feed_forward.down.module, units, layer.path, 1))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def masked(layout: Layout, choice: Choice) -> Iterator[None]:
    """Let the model compute what it will when `choice` is carried out; everything is as before afterwards."""
    weight = next(layout.model.parameters())
    handles: list[Any] = []
    heads = {path: kept.to(weight) for path, kept in choice.heads.items()}
    units = {path: kept.to(weight) for path, kept in choice.units.items()}
    try:
        for path, kept in choice.layers.items():
            blocks = layout.stacks[path].blocks
            handles += [_skip(block.module) for block, stays in zip(blocks, kept.tolist(), strict=True) if not stays]
        for path, kept in choice.width.items():
            handles += _narrow(read_stream(layout, path), kept.to(weight.device))
        with gated(layout, heads, units):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _multiply_input(module: nn.Module, factors: Mapping[str, Tensor], path: str, columns: int) -> Any:
    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        each = factors[path].to(arguments[0].dtype).repeat_interleave(columns, -1)
        return (arguments[0] * each, *arguments[1:])

    return module.register_forward_pre_hook(hook)


def _skip(module: nn.Module) -> Any:
    def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        hidden = first_tensor(arguments or keywords.get("hidden_states"))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return module.register_forward_hook(hook, with_kwargs=True)


def _narrow(stream: Stream, kept: Tensor) -> list[Any]:
    handles = [_multiply_output(part.module, kept) for part in stream.writers]
    for part in stream.norms:
        small = copy.deepcopy(part.module)
        small._forward_hooks.clear()
        shrink_norm(small, kept)
        handles.append(part.module.register_forward_hook(_norm_of(small, kept)))
    return handles


def _multiply_output(module: nn.Module, kept: Tensor) -> Any:
    return module.register_forward_hook(lambda _m, _a, output: output * kept.to(output.dtype))


def _norm_of(small: nn.Module, kept: Tensor) -> Hook:
    def hook(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        made = torch.zeros_like(output)
        made[..., kept] = small(arguments[0][..., kept])
        return made

    return hook
