"""Which tokens of a batch of prompts are pictures: read from ids, mask and what the host was handed with them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import InputError

CACHES = ("cache", "past_key_values")
"""Names under which hosts take keys and values."""
Grid = tuple[int, int]
Shape = tuple[int, Grid | None]
"""Tokens of a picture, and the grid they lie on where it is known."""


@dataclass(frozen=True)
class Picture:
    """Tokens of one picture in one prompt: columns start .. start + tokens - 1, rows of the grid one after another."""

    row: int
    start: int
    tokens: int
    grid: Grid | None
    """Rows and columns; None where they are not known (tiles with line breaks, several frames)."""


@dataclass(frozen=True)
class Layout:
    """One batch of prompts."""

    pictures: tuple[Picture, ...]
    real: Tensor
    """Boolean [B,N], False where a prompt is padded."""


def read_layout(ids: Tensor, mask: Tensor | None, placeholders: Sequence[int], shapes: list[Shape] | None) -> Layout:
    """Return the layout of a batch.

    Args:
        ids: int64 [B,N].
        mask: [B,N], 0 where padded; None where nothing is.
        shapes: of each picture in the order of the batch; None: each unbroken run of placeholders is a picture.

    Raises:
        InputError: the batch is padded on the right, or the placeholders do not fit the pictures.
    """
    real = real_tokens(ids, mask, "tokens are scored by the last one")
    visual = find_placeholders(ids, placeholders) & real
    runs = [(row, *run) for row, line in enumerate(visual.cpu()) for run in runs_of(line)]
    if shapes is None:
        return Layout(tuple(Picture(row, start, n, square(n)) for row, start, n in runs), real)
    require_fit(sum(n for *_, n in runs), [tokens for tokens, _ in shapes])
    return Layout(tuple(_cut(runs, [shape for shape in shapes if shape[0]])), real)


def real_tokens(ids: Tensor, mask: Tensor | None, why: str) -> Tensor:
    """Return where prompts are not padded, boolean [B,N].

    Args:
        why: padding on the right is of no use.

    Raises:
        InputError: the mask has another shape, or prompts are padded on the right.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if real.dim() == 4:
        raise InputError("the mask is that of a cache of one length for all layers; use the dynamic cache")
    if real.shape != ids.shape:
        raise InputError(f"attention_mask is {list(real.shape)}, input_ids {list(ids.shape)}; give one of that shape")
    if not bool(real[:, -1:].all()):
        raise InputError(f"prompts are padded on the right; {why}, so pad on the left")
    return real


def require_both(shown: int, pictured: bool) -> None:
    """Raise InputError where there are pictures and no placeholders, or placeholders and no pictures."""
    if pictured and not shown:
        raise InputError("pictures were given and no prompt holds a placeholder for them; write one for each token")
    if shown and not pictured:
        raise InputError(f"the prompts hold {shown} picture placeholders and no picture was given; give pixel_values")


def require_pictures(pixels: Any) -> None:
    """Raise InputError unless `pixels` are a tensor of pictures [P, 3, H, W]."""
    if not isinstance(pixels, Tensor) or pixels.dim() != 4 or not len(pixels):
        shape = list(pixels.shape) if isinstance(pixels, Tensor) else f"a {type(pixels).__name__}"
        raise InputError(f"pixel_values are {shape}; give pictures or frames [P, 3, H, W], at least one")


def find_placeholders(ids: Tensor, placeholders: Sequence[int]) -> Tensor:
    """Return where `ids` are placeholders, boolean of their shape."""
    return torch.isin(ids, torch.tensor(placeholders, device=ids.device))


def require_fit(found: int, sizes: Sequence[int]) -> None:
    """Raise InputError unless `found` placeholders take the visual tokens of pictures of these sizes."""
    if sum(sizes) != found:
        listed = ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
        raise InputError(
            f"the prompts hold {found} picture placeholders and the pictures make {sum(sizes)} visual tokens "
            f"({listed}); write one placeholder for each token"
        )


def shapes_of(given: Mapping[str, Any], placeholders: int, merge: int) -> list[Shape] | None:
    """Return the shape of each picture from what the host's forward is given, or None where that does not tell.

    Args:
        placeholders: in the whole batch.
        merge: side of the window that the tower merges into one token.

    Raises:
        InputError: grids are given and hold other numbers of tokens than there are placeholders.
    """
    grids = [grid for name in ("image_grid_thw", "video_grid_thw") if (grid := given.get(name)) is not None]
    if grids:
        sizes = [size for grid in grids for size in grid.tolist()]
        shapes: list[Shape] = [
            (t * h * w // merge**2, (h // merge, w // merge) if t == 1 else None) for t, h, w in sizes
        ]
        require_fit(placeholders, [tokens for tokens, _ in shapes])
        return shapes if len(grids) == 1 else None  # which stands where, only the runs of placeholders tell
    encoded = given.get("mm_encoder_outputs") or {}
    features = [getattr(output, "pooler_output", None) for output in encoded.values()]
    if len(features) == 1 and isinstance(features[0], (list, tuple)):
        return [(len(one), square(len(one))) for one in features[0]]
    pixels = given.get("pixel_values")
    if isinstance(pixels, Tensor) and pixels.dim() == 4 and len(pixels) and placeholders % len(pixels) == 0:
        tokens = placeholders // len(pixels)
        return [(tokens, square(tokens))] * len(pixels)
    return None


def given_to(module: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return by name what a forward of `module` is given."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {**dict(zip(names, arguments, strict=False)), **keywords}


def square(tokens: int) -> Grid | None:
    """Return the side twice if so many tokens make a square."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else None


def runs_of(line: Tensor) -> list[tuple[int, int]]:
    """Return first place and length of each unbroken run in a boolean line [N]."""
    edges = torch.diff(line.int(), prepend=torch.zeros(1, dtype=torch.int32), append=torch.zeros(1, dtype=torch.int32))
    starts, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _cut(runs: list[tuple[int, int, int]], shapes: list[Shape]) -> list[Picture]:
    """Cut runs of placeholders into pictures; a run that holds only a part is a picture (a tile) of its own."""
    pictures, waiting = [], iter(shapes)
    left, size, grid = 0, 0, None
    for row, first, length in runs:
        start, end = first, first + length
        while start < end:
            if not left:
                size, grid = next(waiting)
                left = size
            n = min(left, end - start)
            whole = n == left and size == left
            pictures.append(Picture(row, start, n, grid if whole else square(n) if n == length else None))
            start, left = start + n, left - n
    return pictures
