"""The exits of a network's stages: where features are read that stand for a quarter, a half, ... of its depth.

Transformer, Mixer   after blocks 2, 4, 10 and 12 of 12, in proportion for other depths
convolutions         the last map of each size, before the next smaller one: of the last four sizes
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.stacks import find_stacks
from lessen.errors import InputError, NothingMatchedError

SHARES = (2 / 12, 4 / 12, 10 / 12, 1.0)
"""Depths of the exits of a stack of blocks (arXiv 2310.19444)."""
STAGES = 4


def find_stages(model: nn.Module, run: Callable[[nn.Module], Any]) -> tuple[str, ...]:
    """Return paths of modules whose outputs are the exits of the stages, at most four, in order of depth.

    Args:
        run: calls the model once on a batch.

    Raises:
        InputError: neither a list of blocks nor maps of falling size were seen.
    """
    shapes = _outputs(model, run)
    blocks = _blocks(model, shapes)
    if blocks:
        places = sorted({max(1, round(share * len(blocks))) - 1 for share in SHARES})
        return tuple(blocks[place] for place in places)
    maps = [(path, shape) for path, shape in shapes.items() if path and len(shape) == 4 and min(shape[2:]) > 1]
    exits = [list(group)[-1][0] for _, group in groupby(maps, key=lambda one: one[1][2:])]
    if not exits:
        raise InputError(
            f"no stage of {type(model).__name__} was found: it has no list of like blocks over tokens, and none of its "
            "modules gives maps [rows, channels, height, width]; name the stages"
        )
    return tuple(exits[-STAGES:])


@torch.no_grad()
def _outputs(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each module's output, in the order in which they finish."""
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(path: str) -> Any:
        def seen(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor):
                shapes.pop(path, None)
                shapes[path] = tuple(first.shape)

        return seen

    handles = [module.register_forward_hook(watch(path)) for path, module in model.named_modules()]
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _blocks(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Return the paths of the blocks of the longest list of like modules that each give tokens [B, N, C]."""
    try:
        stacks = find_stacks(model)
        paths = [[block.path for block in stack.blocks] for stack in stacks]
    except (NothingMatchedError, InputError):
        paths = [
            [f"{path}.{number}" for number in range(len(module))]
            for path, module in model.named_modules()
            if isinstance(module, (nn.ModuleList, nn.Sequential))
            and len(module) > 1
            and len({type(child) for child in module}) == 1
        ]
    whole = [one for one in paths if all(len(shapes.get(path, ())) == 3 for path in one)]
    return max(whole, key=len, default=[])
