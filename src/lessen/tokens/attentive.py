"""A-CLIP's attentive masking (arXiv 2212.08653): train on the patches that a slowly moving copy attends to.

pictures -> copy (all tokens, no gradient) -> class attention, mean over blocks and heads -> map [B,h,w]
map -> coarse cells -> the best share of cells -> patches kept, the same number for every picture
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.architectures.tower_block import TowerBlock
from lessen.architectures.vit import find_tower
from lessen.errors import InputError
from lessen.tokens.plans import keep_best
from lessen.tokens.rows import Plan
from lessen.tokens.scores import class_attention


def keep_cells(attention: Tensor, share: float, cell: int = 2) -> Tensor:
    """Return a boolean map [B,h,w] of the patches kept: int(cells * share) + 1 cells of `cell` x `cell` patches.

    Args:
        attention: [B,h,w], class attention of each patch; h and w must be multiples of `cell`.
    """
    height, width = attention.shape[-2:]
    if height % cell or width % cell:
        raise InputError(f"a {height}x{width} grid cannot be cut into cells of {cell}x{cell} patches; use cell=1")
    rows, columns = height // cell, width // cell
    coarse = F.interpolate(attention[:, None], size=(rows, columns), mode="bilinear", align_corners=False)
    kept = min(rows * columns, int(rows * columns * share) + 1)
    best = coarse.flatten(1).topk(kept, dim=1).indices
    chosen = torch.zeros(len(attention), rows * columns, dtype=torch.bool).scatter(1, best, True)
    fine = chosen.view(-1, rows, columns).repeat_interleave(cell, 1)
    return fine.repeat_interleave(cell, 2)


def view_of(attention: Tensor, box: Tensor, size: int) -> Tensor:
    """Carry a map from a wide crop to a view inside it.

    Args:
        attention: [B,h,w], map of the wide crop, whose side is `size` pixels.
        box: [B,4], the view inside the wide crop: top, left, bottom, right in pixels.

    Returns:
        [B,h,w], the map seen by the view.
    """
    height, width = attention.shape[-2:]
    top, left, bottom, right = box.float().unbind(1)

    def axis(first: Tensor, end: Tensor, count: int) -> Tensor:
        centre = (torch.arange(count).float() + 0.5) / count
        return 2 * (first[:, None] + centre * (end - first)[:, None]) / size - 1

    rows, columns = axis(top, bottom, height), axis(left, right, width)
    where = torch.stack([columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], -1)
    return F.grid_sample(attention[:, None].float(), where, align_corners=False, padding_mode="border")[:, 0]


class MovingAverage:
    """An exponential moving average of a model: theta_e <- m theta_e + (1 - m) theta."""

    def __init__(self, model: nn.Module, momentum: float = 0.996) -> None:
        self.momentum = momentum
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards `model`; buffers are copied."""
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - self.momentum)
        for kept, given in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(given)


class AttentionMap:
    """Reads the class attention of every block of a model while it runs."""

    def __init__(self, model: nn.Module) -> None:
        self.tower = find_tower(model)
        if not self.tower.family.has_class:
            raise InputError("attentive masking needs a class token; this tower has none")
        if self.tower.family.rotary:
            raise InputError(
                f"attentive masking drops patches before the first block, and {self.tower.path!r} is handed the "
                "positions of all of them; fine-tune with fine_tune_share 1"
            )
        self.rows: list[Tensor] = []
        self.handles: list[Any] = []
        for block in self.tower.blocks:
            parts = TowerBlock(block, self.tower.family)
            parts.watch()
            self.handles += parts.handles
            self.handles.append(block.register_forward_hook(self._reader(parts)))

    def _reader(self, parts: TowerBlock) -> Any:
        def read(*_: Any) -> None:
            self.rows.append(class_attention(parts.queries(), parts.keys(), None))

        return read

    @torch.no_grad()
    def __call__(self, model: nn.Module, *arguments: Any, **keywords: Any) -> Tensor:
        """Run `model` and return the mean class attention of all blocks, [B,N]."""
        self.rows.clear()
        model(*arguments, **keywords)
        return torch.stack(self.rows).mean(0)


def attentive_plan(attention: Tensor, grid: tuple[int, int], share: float, protected: int, cell: int) -> Plan:
    """Return the plan that keeps the attended cells of every picture; `attention` is [B,N] over all tokens."""
    kept = keep_cells(attention[:, protected:].reshape(-1, *grid), share, cell).flatten(1).float()
    scores = torch.cat([torch.zeros(len(kept), protected), kept], 1)
    return keep_best(scores, protected + int(kept[0].sum()), protected)
