"""Parameters and multiply-adds of what a choice leaves, by arithmetic.

A block of G groups, U units and width W holds   G (g W + b) + U (u W + c) + r W + s   parameters, and does
T (G g W + U u W) + 2 T^2 G q   multiply-adds on T tokens, where q are the columns of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.flops import CPU_ATTENTION_FLOPS
from lessen.architectures.parts import Part
from lessen.pruning.choice import Choice
from lessen.pruning.layout import Layer, Layout, first_tensor

Measure = Literal["macs", "parameters"]


@dataclass(frozen=True)
class Price:
    """What one group or one unit costs: a part that goes with the width, and one that does not."""

    wide: int
    flat: int


@dataclass(frozen=True)
class LayerPrice:
    """What the parts of a block cost."""

    group: Price
    unit: Price
    rest: Price
    """Norms, biases of what writes into the stream, and whatever else the block holds."""
    columns: int


@dataclass(frozen=True)
class Costs:
    """Arithmetic for one model; `tokens` are those of each stack in one example."""

    layout: Layout
    prices: dict[str, LayerPrice]
    outside: Price
    """Parameters that belong to no block."""
    tokens: dict[str, int]
    macs_outside: int
    """Multiply-adds of one example outside of what is counted here."""

    def parameters(self, choice: Choice | None = None) -> int:
        """Return how many parameters a choice leaves; None: all."""
        return round(self.total("parameters", choice))

    def macs(self, choice: Choice | None = None) -> int:
        """Return the multiply-adds of one example that a choice leaves; None: all."""
        return round(self.total("macs", choice))

    def total(self, measure: Measure, choice: Choice | None = None) -> float:
        """Return what a choice leaves in one of the two measures."""
        choice = choice or Choice()
        soft = Soft(
            {path: marks.sum() for path, marks in choice.heads.items()},
            {path: marks.sum() for path, marks in choice.units.items()},
            {path: marks.double() for path, marks in choice.layers.items()},
            {path: marks.sum() for path, marks in choice.width.items()},
        )
        return float(self.soft(measure, soft))

    def soft(self, measure: Measure, counts: Soft) -> Any:
        """Return the same for counts that may be fractions and carry gradients."""
        total: Any = 0.0
        for path, stack in self.layout.stacks.items():
            width = counts.width.get(path, stack.width)
            stays = counts.layers.get(path)
            for number, layer in enumerate(self.layout.of(path)):
                groups, units = counts.heads.get(layer.path, layer.groups), counts.units.get(layer.path, layer.hidden)
                cost = self._layer(measure, layer, groups, units, width)
                total = total + (cost if stays is None else cost * stays[number])
        first = next(iter(self.layout.stacks.values()))
        share = counts.width.get(first.path, first.width) / first.width
        if measure == "macs":
            return total + self.macs_outside * share
        return total + self.outside.wide * first.width * share + self.outside.flat

    def removable(self, measure: Measure) -> float:
        """Return what all heads and units that may go cost together."""
        return sum(
            layer.groups * self.atom(measure, layer, "group", Choice())
            + layer.hidden * self.atom(measure, layer, "unit", Choice())
            for layer in self.layout.layers
        )

    def atom(self, measure: Measure, layer: Layer, kind: Literal["group", "unit"], start: Choice) -> float:
        """Return what one group or unit of a layer costs at the width that `start` leaves."""
        kept = start.width.get(layer.stack)
        width = self.layout.stacks[layer.stack].width if kept is None else int(kept.sum())
        one = self._layer(measure, layer, int(kind == "group"), int(kind == "unit"), width)
        return float(one - self._layer(measure, layer, 0, 0, width))

    def _layer(self, measure: Measure, layer: Layer, groups: Any, units: Any, width: Any) -> Any:
        price = self.prices[layer.path]
        if measure == "macs":
            tokens = self.tokens[layer.stack]
            dense = tokens * width * (groups * price.group.wide + units * price.unit.wide)
            return dense + 2 * tokens * tokens * price.columns * groups
        return (
            groups * (price.group.wide * width + price.group.flat)
            + units * (price.unit.wide * width + price.unit.flat)
            + price.rest.wide * width
            + price.rest.flat
        )


@dataclass(frozen=True)
class Soft:
    """Counts that a cost is asked for; what is not named stays whole."""

    heads: dict[str, Any]
    units: dict[str, Any]
    layers: dict[str, Tensor]
    width: dict[str, Any]


def read_costs(layout: Layout, forward: Callable[[], Any], examples: int) -> Costs:
    """Return the arithmetic of a model.

    Args:
        forward: runs the model on one batch, of which tokens and the multiply-adds outside of blocks are read.
        examples: how many examples are in that batch.
    """
    prices = {layer.path: _price(layer, layout.stacks[layer.stack].width) for layer in layout.layers}
    width = next(iter(layout.stacks.values())).width
    inside = {id(p) for stack in layout.stacks.values() for block in stack.blocks for p in block.module.parameters()}
    outer = {id(p): p for p in layout.model.parameters() if id(p) not in inside}
    own = {id(m.bias) for m in layout.model.modules() if isinstance(m, nn.Linear) and m.in_features == width}
    follows = {key: p for key, p in outer.items() if width in p.shape and key not in own}
    wide = sum(p.numel() // width for p in follows.values())
    flat = sum(p.numel() for key, p in outer.items() if key not in follows)
    tokens, flops = _traced(layout, forward)
    costs = Costs(layout, prices, Price(wide, flat), {path: t // examples for path, t in tokens.items()}, 0)
    return Costs(layout, prices, costs.outside, costs.tokens, max(0, flops // 2 // examples - costs.macs()))


def _traced(layout: Layout, forward: Callable[[], Any]) -> tuple[dict[str, int], int]:
    """Return the tokens of the batch by stack, and the floating-point operations of one forward."""
    tokens: dict[str, int] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            hidden = first_tensor(arguments or keywords.get("hidden_states"))
            tokens[path] = hidden.numel() // hidden.shape[-1]

        return hook

    handles = [
        stack.blocks[0].module.register_forward_pre_hook(watch(path), with_kwargs=True)
        for path, stack in layout.stacks.items()
    ]
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS)
    try:
        with torch.no_grad(), counter:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return {path: tokens.get(path, 0) for path in layout.stacks}, int(counter.get_total_flops())


def _price(layer: Layer, width: int) -> LayerPrice:
    group, unit, columns = Price(0, 0), Price(0, 0), 0
    attention, feeding = layer.block.attention, layer.block.feed_forward
    if attention is not None and layer.groups:
        columns = layer.columns
        inner = columns + 2 * attention.head_dim
        biases = columns * _biased(attention.query) + attention.head_dim * (
            _biased(attention.key) + _biased(attention.value)
        )
        group = Price(inner + columns, biases)
    if feeding is not None and layer.hidden:
        inputs = [feeding.up] + ([feeding.gate] if feeding.gate else [])
        unit = Price(len(inputs) + 1, sum(map(_biased, inputs)))
    rest = {id(p): p for p in layer.block.module.parameters()}
    for part in _counted(layer):
        names = ("weight",) if part in _closing(layer) else ("weight", part.bias)
        for name in names:
            rest.pop(id(getattr(part.module, name, None)), None)
    wide = sum(p.numel() // width for p in rest.values() if width in p.shape)
    flat = sum(p.numel() for p in rest.values() if width not in p.shape)
    return LayerPrice(group, unit, Price(wide, flat), columns)


def _counted(layer: Layer) -> list[Part]:
    """Return the linear layers that go by groups and units."""
    attention, feeding = layer.block.attention, layer.block.feed_forward
    found: list[Part] = []
    if attention is not None and layer.groups:
        found += [attention.query, attention.key, attention.value, attention.output]
    if feeding is not None and layer.hidden:
        found += [feeding.up, *([feeding.gate] if feeding.gate else []), feeding.down]
    return found


def _closing(layer: Layer) -> list[Part]:
    """Return the layers that write into the stream, whose biases are as wide as it is."""
    attention, feeding = layer.block.attention, layer.block.feed_forward
    return [part.output for part in (attention,) if part is not None] + [
        part.down for part in (feeding,) if part is not None
    ]


def _biased(part: Part) -> bool:
    return getattr(part.module, part.bias, None) is not None
