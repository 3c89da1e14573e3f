"""Rows of up to 16 sizes laid one after another: half a byte a row says its class, and where it starts is added up.

classes uint8 [8 * blocks]   two rows a byte, the even row in the low half; a block is 16 rows
starts  int64 [blocks]       where the first row of each block starts          1 byte a row together
"""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.stored import checks

BLOCK = 16
CHECKED = 2**14
"""Blocks that are checked at a time."""


def blocks_for(rows: int) -> int:
    """Return the blocks that `rows` rows take."""
    return -(-rows // BLOCK)


def pack(classes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return (classes, starts) for the class of each row, integers [rows], and the size of each class, int64 [k]."""
    padded = torch.zeros(blocks_for(len(classes)) * BLOCK, dtype=torch.uint8, device=classes.device)
    padded[: len(classes)] = classes
    total = sizes[padded.long()].view(-1, BLOCK).sum(dim=1)
    halves = padded.view(-1, 2)
    return halves[:, 0] | (halves[:, 1] << 4), total.cumsum(0) - total


def find(classes: Tensor, starts: Tensor, sizes: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class and the start of each row, int64 [n] each, for ids int64 [n]."""
    block, place = ids // BLOCK, ids % BLOCK
    halves = classes.view(-1, BLOCK // 2)[block]
    each = torch.stack([halves & 15, halves >> 4], dim=2).flatten(1).long()
    before = torch.arange(BLOCK, device=ids.device) < place.unsqueeze(1)
    return each.gather(1, place.unsqueeze(1))[:, 0], starts[block] + (sizes[each] * before).sum(dim=1)


def check(classes: Tensor, starts: Tensor, sizes: Tensor, rows: int, total: int) -> None:
    """Refuse classes without a size, starts that do not add up, and rows that do not take `total` together.

    Args:
        sizes: int64 [k], the size of each class.

    Raises:
        ValueError: which of the tensors is wrong.
    """
    before, used = 0, 0
    for number, (half, start) in enumerate(
        zip(torch.split(classes, CHECKED * BLOCK // 2), torch.split(starts, CHECKED), strict=True)
    ):
        each = torch.stack([half & 15, half >> 4], dim=1).flatten()
        checks.within("classes", each, 0, len(sizes) - 1)
        taken = sizes[each.int()]
        blocks = taken.view(-1, BLOCK).sum(dim=1)
        checks.equal("starts", start, blocks.cumsum(0) - blocks + before)
        before += int(blocks.sum())
        used += int(taken[: max(0, rows - number * CHECKED * BLOCK)].sum())
    if used != total:
        raise ValueError(f"the rows take {used} places, the configuration says {total}")
