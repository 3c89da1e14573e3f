"""GLSim's rule (arXiv 2407.12891): crop a picture to the patches most similar to the class token.

The crop is classified by a second pass through the same tower: this buys accuracy for a second pass, it saves nothing
against one pass. It is cheaper than doubling the resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import InputError
from lessen.tokens.scores import class_similarity


def similar_patches(output: Tensor, patches: int, best: int) -> Tensor:
    """Return the `best` patches by cosine with the class token, int64 [B,best].

    Args:
        output: last tower output [B,N,C] after its norm; token 0 is the class token, the last `patches` the grid, so
            that registers between them are skipped.
    """
    if not 1 <= best <= patches:
        raise InputError(f"cannot choose {best} of {patches} patches")
    return class_similarity(output)[:, -patches:].topk(best, dim=1).indices


def box_of(patches: Tensor, grid: tuple[int, int], patch: int, whole_last: bool = True) -> Tensor:
    """Return the smallest boxes that hold the chosen patches, int64 [B,4]: top, left, bottom, right in pixels.

    Args:
        patches: int64 [B,O], row-major indices into the grid.
        whole_last: include the last row and column of patches. The published code ends the box at the top-left
            corner of the last patch, unless the box is one patch wide; False gives that box.
    """
    height, width = grid
    row, column = patches // width, patches % width
    edges = []
    for place, count in ((row, height), (column, width)):
        first, last = place.amin(1) * patch, place.amax(1) * patch
        end = last + patch if whole_last else torch.maximum(last, first + patch)
        edges.append((first, end.clamp(max=count * patch)))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], 1)


def crop_resized(images: Tensor, box: Tensor) -> Tensor:
    """Return each picture's box stretched to the full size, bilinear with aligned corners: [B,C,H,W] and [B,4]."""
    height, width = images.shape[-2:]
    top, left, bottom, right = box.to(images.dtype).unbind(1)

    def axis(first: Tensor, end: Tensor, size: int) -> Tensor:
        steps = torch.linspace(0, 1, size, dtype=images.dtype, device=images.device)
        pixel = first[:, None] + steps * (end - 1 - first)[:, None]
        return 2 * pixel / max(1, size - 1) - 1

    rows, columns = axis(top, bottom, height), axis(left, right, width)
    where = torch.stack([columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], -1)
    return F.grid_sample(images, where, mode="bilinear", align_corners=True)
