"""Module-wise error: how much a model gets worse when one part is taken out and all others stay.

heads     each group of heads of each block
units     of each block in neuron groups, sorted by a cheap score before they are cut into groups
blocks    each whole, and again after each that was dropped
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lessen.log import Log
from lessen.pruning.budget import Values
from lessen.pruning.choice import Choice
from lessen.pruning.layout import Layer, Layout
from lessen.pruning.masks import gated, masked
from lessen.pruning.replay import Replay

Question = Callable[[], float]


def errors(
    layout: Layout, question: Question, order: Values, neuron_groups: int, kept: Choice, log: Log
) -> Values:  # fmt: skip
    """Return the error of each group of heads and each unit; units of a neuron group share its error.

    Args:
        question: the model's quality, higher is better; runs the same inputs each time.
        order: cheap scores by which units are sorted into neuron groups.
        kept: what earlier rounds left; what is gone is worth less than all that is there.
    """
    heads = {one.path: _ones(kept.heads, one.path, one.groups) for one in layout.layers if one.groups}
    units = {one.path: _ones(kept.units, one.path, one.hidden) for one in layout.layers if one.hidden}
    found_heads: dict[str, Tensor] = {}
    found_units: dict[str, Tensor] = {}
    with gated(layout, heads, units):
        replay = Replay(layout, question)
        for number, layer in enumerate(layout.layers):
            for every, found, pieces in (
                (heads, found_heads, _singles(heads.get(layer.path))),
                (units, found_units, _neuron_groups(order.units.get(layer.path), units.get(layer.path), neuron_groups)),
            ):
                if not pieces:
                    continue
                whole = every[layer.path]
                values = torch.full((len(whole),), float("nan"), dtype=torch.float64)
                for piece in pieces:
                    every[layer.path] = whole.clone().index_fill_(0, piece, 0.0)
                    values[piece] = (replay.value - replay.ask(layer)) / len(piece)
                every[layer.path] = whole
                found[layer.path] = values
            log.progress("taking parts out one by one", number + 1, len(layout.layers))
    return Values(_settled(found_heads), _settled(_ranked(found_units, order.units)))


def weakest_blocks(
    layout: Layout, question: Question, kept: Choice, drop: int, log: Log, may_go: Sequence[Layer] | None = None
) -> dict[str, Tensor]:
    """Return which blocks stay, bool [blocks] by stack, after `drop` were dropped, each time the one missed least.

    At least one block of each stack stays.

    Args:
        may_go: blocks among which those that go are chosen; none: all.
    """
    stays = {path: torch.ones(len(stack.blocks), dtype=torch.bool) for path, stack in layout.stacks.items()}
    for number in range(drop):
        best: tuple[float, str, int] | None = None
        with masked(layout, Choice(kept.heads, kept.units, stays)):
            replay = Replay(layout, question)
        for layer in layout.layers if may_go is None else may_go:
            mine = stays[layer.stack]
            if not bool(mine[layer.block.index]) or int(mine.sum()) == 1:
                continue
            mine[layer.block.index] = False
            with masked(layout, Choice(kept.heads, kept.units, stays)):
                value = replay.ask(layer)
            mine[layer.block.index] = True
            if best is None or value > best[0]:
                best = value, layer.stack, layer.block.index
        if best is None:
            break
        stays[best[1]][best[2]] = False
        log.progress("dropping blocks one by one", number + 1, drop)
    return stays


def _ones(marks: dict[str, Tensor], path: str, count: int) -> Tensor:
    return marks[path].float() if path in marks else torch.ones(count)


def _singles(factors: Tensor | None) -> list[Tensor]:
    return [] if factors is None else list(factors.nonzero().unbind())


def _neuron_groups(order: Tensor | None, factors: Tensor | None, count: int) -> list[Tensor]:
    """Return the units that are there, best first, in `count` groups."""
    if order is None or factors is None:
        return []
    sorted_units = torch.argsort(-order.double(), stable=True)
    return [piece for piece in sorted_units[factors[sorted_units] > 0].tensor_split(count) if len(piece)]


def _ranked(values: dict[str, Tensor], order: dict[str, Tensor] | object) -> dict[str, Tensor]:
    """Let units of one neuron group differ a little, in the cheap order."""
    assert isinstance(order, dict)
    found: dict[str, Tensor] = {}
    for path, value in values.items():
        spread = float(value[~value.isnan()].abs().max()) + 1e-30
        rank = torch.argsort(torch.argsort(-order[path].double(), stable=True), stable=True)
        found[path] = value - 1e-9 * spread * rank / len(value)
    return found


def _settled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give what is gone a value below all others."""
    known = torch.cat([value[~value.isnan()] for value in values.values()]) if values else torch.zeros(1)
    lowest = float(known.min()) - float(known.max() - known.min()) - 1.0
    return {path: value.nan_to_num(nan=lowest) for path, value in values.items()}
