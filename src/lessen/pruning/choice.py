"""What is kept of a model's prunable parts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lessen.errors import BudgetError
from lessen.pruning.layout import Layout


@dataclass(frozen=True)
class Choice:
    """Marks of what stays, bool tensors: heads and units by block, blocks and width by stack."""

    heads: dict[str, Tensor] = field(default_factory=dict)
    """[groups] by path of the block; a block that is not named keeps all."""
    units: dict[str, Tensor] = field(default_factory=dict)
    """[hidden] by path of the block."""
    layers: dict[str, Tensor] = field(default_factory=dict)
    """[blocks] by path of the stack."""
    width: dict[str, Tensor] = field(default_factory=dict)
    """[width] by path of the stack."""

    def check(self, layout: Layout) -> None:
        """Refuse a choice that leaves a part without anything. Raises BudgetError."""
        for what, marks in (("heads", self.heads), ("feed-forward units", self.units)):
            for path, kept in marks.items():
                if not bool(kept.any()):
                    raise BudgetError(f"{path} would be left without {what}; keep more, or drop the block whole")
        for what, marks in (("blocks", self.layers), ("width", self.width)):
            for path, kept in marks.items():
                if not bool(kept.any()):
                    raise BudgetError(f"{path} of {type(layout.model).__name__} would be left without {what}")

    def counts(self, layout: Layout) -> dict[str, dict[str, object]]:
        """Return, for each stack, heads and units kept of each block that stays, and the width: JSON values."""
        found: dict[str, dict[str, object]] = {}
        for path, stack in layout.stacks.items():
            stays = self.layers.get(path, torch.ones(len(stack.blocks), dtype=torch.bool)).tolist()
            layers = [layer for layer, kept in zip(layout.of(path), stays, strict=True) if kept]
            found[path] = {
                "blocks": [number for number, kept in enumerate(stays) if kept],
                "heads": [
                    layer.block.attention.heads // layer.groups * _count(self.heads, layer.path, layer.groups)
                    for layer in layers
                    if layer.groups and layer.block.attention
                ],
                "units": [_count(self.units, layer.path, layer.hidden) for layer in layers if layer.hidden],
                "width": _count(self.width, path, stack.width),
            }
        return found


def _count(marks: dict[str, Tensor], path: str, whole: int) -> int:
    return int(marks[path].sum()) if path in marks else whole
