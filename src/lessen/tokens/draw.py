"""Pictures of a reduction: which patches were merged and which were dropped, block by block."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lessen.errors import InputError
from lessen.tokens.patch import Patch

MARGIN, TITLE = 6, 14
BORDER = np.array([255, 255, 255], dtype=np.uint8)


def trace(patch: Patch, *arguments: Any, **keywords: Any) -> list[Tensor | None]:
    """Run the patched model and return the group map of each block: int64 [B,N0], or None while nothing changed."""
    groups: list[Tensor | None] = []

    def note(*_: Any) -> None:
        state = patch.calls.newest()
        groups.append(None if state is None else state.group)

    handles = [block.register_forward_hook(note) for block in patch.tower.blocks]
    try:
        with torch.no_grad():
            patch.model(*arguments, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    return groups


def draw(
    image: Tensor, groups: list[Tensor | None], grid: tuple[int, int], protected: int, *, index: int = 0, side: int = 24
) -> bytes:
    """Return a PNG with one panel for the picture and one for each block.

    Patches of one token are filled with their mean colour, with a white line around each group; dropped patches are
    black.

    Args:
        image: uint8 [3,H,W], the picture that image `index` of the batch was made from.
        side: pixels of one patch in the drawing.
    """
    from PIL import Image, ImageDraw

    height, width = grid
    size = (width * side, height * side)
    picture = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.NEAREST))
    patches = height * width
    panels: list[tuple[str, NDArray[np.uint8]]] = [("picture", picture)]
    for block, group in enumerate(groups):
        cells = torch.arange(patches) if group is None else group[index, protected:]
        if len(cells) != patches:
            raise InputError(f"{len(cells)} patches are no {height}x{width} grid; give the grid of the tower")
        left = len(set(cells[cells >= 0].tolist()))
        panels.append((f"block {block}: {left}", panel(picture, cells.view(grid).numpy(), side)))
    sheet = Image.new("RGB", ((size[0] + MARGIN) * len(panels) + MARGIN, size[1] + TITLE + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, content) in enumerate(panels):
        corner = MARGIN + number * (size[0] + MARGIN)
        pen.text((corner, 2), title, fill="black")
        sheet.paste(Image.fromarray(content), (corner, TITLE + MARGIN))
    raw = io.BytesIO()
    sheet.save(raw, "PNG")
    return raw.getvalue()


def panel(picture: NDArray[np.uint8], cells: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """Fill the patches of each group [h,w] with their mean colour and draw the borders between groups."""
    large = cells.repeat(side, 0).repeat(side, 1)
    out = np.zeros_like(picture)
    for group in np.unique(cells):
        inside = large == group
        if group >= 0:
            out[inside] = picture[inside].mean(0).astype(np.uint8)
    edge = np.zeros(large.shape, dtype=bool)
    edge[1:] |= large[1:] != large[:-1]
    edge[:, 1:] |= large[:, 1:] != large[:, :-1]
    out[edge] = BORDER
    return out
