"""Tiles of a large picture, as LLaVA-UHD and SliME cut them: which grid, how they are cut and lie side by side."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import InputError

Grid = tuple[int, int]


def tile_grid(height: int, width: int, side: int = 336, most: int = 6) -> Grid:
    """Return rows and columns of tiles of a picture.

    About ceil(height * width / side**2) tiles, at most `most` (one more by a grid that fits better), at least 2: of all
    grids of one fewer to one more tile that of the largest effective resolution, of equal ones that of least waste.
    """
    if min(height, width, side) < 1 or most < 2:
        raise InputError(f"a picture of {height}x{width} cannot be cut to at most {most} tiles of {side}")
    scale = max(2, min(most, math.ceil(height * width / side**2)))
    counts = (scale, scale + 1) if scale <= 2 else (scale - 1, scale, scale + 1)
    grids = [(count // columns, columns) for count in counts for columns in range(1, count + 1) if count % columns == 0]

    def worth(grid: Grid) -> tuple[float, float]:
        rows, columns = grid
        zoom = min(columns * side / width, rows * side / height)
        seen = min(int(width * zoom) * int(height * zoom), width * height)
        return seen, -(rows * columns * side**2 - seen)

    return max(grids, key=worth)


def cut_tiles(picture: Tensor, side: int = 336, most: int = 6) -> tuple[Tensor, Grid]:
    """Return the overview and the tiles of a picture, float [1 + rows*columns, 3, side, side], and the grid.

    The overview is the whole picture squashed; tiles are cut row by row from the picture resized with its aspect kept,
    black around it.

    Args:
        picture: float [3, H, W].

    Raises:
        InputError: it is no picture.
    """
    if picture.dim() != 3 or not picture.numel():
        raise InputError(f"a picture of shape {list(picture.shape)} cannot be cut to tiles; give [3, H, W]")
    height, width = picture.shape[1:]
    rows, columns = grid = tile_grid(height, width, side, most)
    zoom = min(columns * side / width, rows * side / height)
    inner = (min(rows * side, round(height * zoom)), min(columns * side, round(width * zoom)))
    top, left = (rows * side - inner[0]) // 2, (columns * side - inner[1]) // 2
    canvas = picture.new_zeros(3, rows * side, columns * side)
    canvas[:, top : top + inner[0], left : left + inner[1]] = _resized(picture, inner)
    tiles = canvas.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([_resized(picture, (side, side))[None], tiles]), grid


def fold(tiles: Tensor, grid: Grid, inner: Grid) -> Tensor:
    """Return tiles [B * rows*columns, h*w, D] of B pictures as maps [B, D, rows*h, columns*w]."""
    rows, columns, (height, width) = *grid, inner
    if tiles.shape[0] % (rows * columns) or tiles.shape[1] != height * width:
        raise InputError(
            f"{tiles.shape[0]} tiles of {tiles.shape[1]} tokens are no pictures of {rows}x{columns} tiles of "
            f"{height}x{width} tokens"
        )
    cut = tiles.view(-1, rows, columns, height, width, tiles.shape[2])
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, tiles.shape[2], rows * height, columns * width)


def unfold(maps: Tensor, grid: Grid) -> Tensor:
    """Return maps [B, D, rows*h, columns*w] as tiles [B * rows*columns, h*w, D]; it undoes `fold`."""
    rows, columns = grid
    batch, depth, height, width = maps.shape
    cut = maps.view(batch, depth, rows, height // rows, columns, width // columns)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch * rows * columns, -1, depth)


def _resized(picture: Tensor, size: Grid) -> Tensor:
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True).clamp(*_range(picture))[0]


def _range(picture: Tensor) -> tuple[float, float]:
    return float(picture.min()), float(picture.max())
