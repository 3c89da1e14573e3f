"""Which place of a turned picture is this? Features of two towers, each alone and fused (SD-DINO), on CIFAR-10.

    python -m benchmarks.retrieval.towers [--pictures 200]

Every picture is turned, scaled and moved by a known map, three times; a cell of the original (4 x 4 pixels)
looks for its place among the cells of its own warped picture. Right is what lands within a tenth of the side (PCK@0.1).
Towers: the tokens of the packaged ViT after its second block, and histograms of gradients of a cell and of those around
it; nothing is trained. Controls: random features, and the warped picture of another one. The unit is the picture.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.retrieval.records import interval, write
from lessen.data.catalogue import get
from lessen.data.cifar10 import load_cifar10, normalise
from lessen.method import Context
from lessen.methods.retrieval.sd_dino import SDDino
from lessen.retrieval.fusing import co_pca, fused
from lessen.tasks.retrieval.vectors import Searcher, VectorsOptions, VectorsTask
from lessen.tasks.vision.cifar10 import Cifar10Task

SIDE, CELL, NEAR, SEEDS = 32, 4, 0.1, 3
GRID = SIDE // CELL


def warped(pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return warped pictures [n, 3, 32, 32], and where the centre of each cell lies in them, pixels [n, cells, 2]."""
    count = len(pictures)
    angle = (torch.rand(count, generator=generator) - 0.5) * math.pi / 6
    scale = 0.85 + 0.3 * torch.rand(count, generator=generator)
    shift = (torch.rand(count, 2, generator=generator) - 0.5) * 0.3
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1)
    whole = turn * scale[:, None, None]
    grid = F.affine_grid(torch.cat([whole, shift[:, :, None]], dim=2), list(pictures.shape), align_corners=False)
    made = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    across = (torch.arange(GRID) + 0.5) * 2 / GRID - 1
    y, x = torch.meshgrid(across, across, indexing="ij")
    centres = torch.stack([x.flatten(), y.flatten()], dim=1)
    back = (centres[None] - shift[:, None]) @ torch.linalg.inv(whole).transpose(1, 2)
    return made, (back + 1) * SIDE / 2


def tokens(pictures: Tensor) -> Tensor:
    """Return the ViT's tokens after its second block, [n, cells, 128 or so]."""
    model = Cifar10Task().reference()
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    caught: list[Tensor] = []
    handle = blocks[1].register_forward_hook(lambda _m, _i, output: caught.append(output))
    with torch.no_grad():
        model(normalise((pictures * 255).to(torch.uint8)))
    handle.remove()
    return caught[0][:, -GRID * GRID :]


def gradients(pictures: Tensor) -> Tensor:
    """Return histograms of eight directions of gradients of each cell and the eight around it, [n, cells, 72]."""
    grey = pictures.mean(dim=1, keepdim=True)
    down, across = (F.conv2d(F.pad(grey, (1, 1, 1, 1), "reflect"), k[None, None]) for k in _sobel())
    angle = torch.atan2(down, across) / math.pi * 4
    votes = (1 - (angle - torch.arange(-4, 4)[None, :, None, None] + 4).remainder(8).sub(4).abs()).clamp(min=0)
    cells = F.avg_pool2d(votes * torch.hypot(down, across), CELL)
    return F.unfold(cells, 3, padding=1).transpose(1, 2)


def _sobel() -> tuple[Tensor, Tensor]:
    one = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]])
    return one, one.t().contiguous()


def right(scores: Tensor, places: Tensor) -> Tensor:
    """Return the share of a picture's cells that find their place, of those that are still in the picture.

    Args:
        scores: [cells, cells] of the original with the warped; places: where cells lie, pixels [cells, 2].
    """
    inside = ((places >= 0) & (places < SIDE)).all(dim=1)
    best = scores.argmax(dim=1)
    found = torch.stack([best % GRID, best // GRID], dim=1) * CELL + CELL / 2
    return ((found - places).norm(dim=1) <= NEAR * SIDE)[inside].double().mean()


def cosines(first: Tensor, second: Tensor) -> Tensor:
    return F.normalize(first, dim=1) @ F.normalize(second, dim=1).t()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pictures = load_cifar10(get("cifar10")).test.pixels[: asked.pictures]
    pictures = (pictures if pictures.shape[1] == 3 else pictures.permute(0, 3, 1, 2)).float() / 255
    own = tokens(pictures), gradients(pictures)
    each: dict[str, list[np.ndarray]] = {}
    sizes: dict[str, int] = {}
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        moved, places = warped(pictures, generator)
        other = tokens(moved), gradients(moved)
        noise = torch.randn(2, *own[0].shape, generator=generator)
        wide, width = torch.cat(own, dim=2), own[0].shape[2]
        rows = torch.cat(other, dim=2)
        sizes |= {"ViT tokens": width, "gradients": own[1].shape[2], "fused": wide.shape[2]}
        indexes = {}
        for kept in (128, 64, 32):
            share = kept / wide.shape[2]
            model = Searcher(rows.flatten(0, 1))
            task = VectorsTask(VectorsOptions(rows=20, dim=2, queries=2, k=1))
            made = SDDino(split=width, share=share).apply(model, task, Context())
            indexes[f"sd-dino, one basis, {kept}"] = made.index
            sizes[f"sd-dino, one basis, {kept}"] = made.index.vectors.shape[1]
        found: dict[str, list[Tensor]] = {}

        def note(name: str, scores: Tensor, at: int, found: Any = found, places: Tensor = places) -> None:
            found.setdefault(name, []).append(right(scores, places[at]))

        for at in range(len(pictures)):
            a, b = (cosines(x[at], y[at]) for x, y in zip(own, other, strict=True))
            note("ViT tokens", a, at)
            note("gradients", b, at)
            note("concatenated, not normalised", cosines(wide[at], rows[at]), at)
            left, old = (fused(x[0][at], x[1][at]) for x in (own, other))
            note("fused", left @ old.t(), at)
            parts = [co_pca(x[at], y[at], 32) for x, y in zip(own, other, strict=True)]
            note(
                "fused, a basis for each pair, 64",
                fused(parts[0][0], parts[1][0]) @ fused(*(p[1] for p in parts)).t(),
                at,
            )
            for name, index in indexes.items():
                cells = slice(at * GRID * GRID, (at + 1) * GRID * GRID)
                note(name, index.fuse(wide[at]) @ index.vectors[cells].t(), at)
            note("control: random features", cosines(noise[0, at], noise[1, at]), at)
            stranger = (at + 1) % len(pictures)
            away = fused(other[0][stranger], other[1][stranger])
            note("control: the picture of another", left @ away.t(), at)
        for name, values in found.items():
            each.setdefault(name, []).append(np.asarray(torch.stack(values)))
    sizes["fused, a basis for each pair, 64"] = 64
    best = np.mean(each["gradients"], axis=0), np.mean(each["ViT tokens"], axis=0)
    better = max(best, key=lambda one: one.mean())
    rows_made = {
        name: {
            "pck": interval(np.mean(values, axis=0)), "by_seed": [round(float(v.mean()), 4) for v in values],
            "over_the_better_tower": interval(np.mean(values, axis=0) - better), "numbers_a_cell": sizes.get(name),
        }
        for name, values in each.items()
    }  # fmt: skip
    write(
        "retrieval_towers", "towers", "", {"pictures": len(pictures), "seeds": SEEDS, "near": NEAR, "rows": rows_made}
    )


if __name__ == "__main__":
    main()
