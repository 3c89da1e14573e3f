"""Dual encoders that know what they see: they read colours and shapes off the pixels, and bind them, or do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.judges.pairs import Given
from lessen.judges.association import DRAWN, PALETTE
from lessen.judges.conditional import SHAPES

COLOURS = list(PALETTE)
RATIOS = {name: wide / high for name, (_, wide, high) in DRAWN.items()}


class Seer(nn.Module):
    """Sees objects and their colours; `rho` is how much an object's vector holds of its typical colour.

    Args:
        binds: whether a picture is held as pairs of object and colour, or as a bag of both.
        listens: how much of a text it hears.
        noise: how far its vectors err.
    """

    def __init__(self, binds: bool = True, rho: float = 0.3, listens: float = 1.0, noise: float = 0.0) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(1))
        self.binds, self.rho, self.listens, self.noise = binds, rho, listens, noise


class Looking(Given):
    """A task with encoders of pictures and texts."""

    name = "looking"

    def encode_images(self, model: Any, pictures: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(len(pictures))
        found = torch.stack([sum(_seen(model, thing) for thing in _things(picture)) for picture in pictures])
        return found + model.noise * torch.randn(found.shape, generator=g)

    def encode_texts(self, model: Any, texts: Sequence[str]) -> Tensor:
        return torch.stack([_read(model, text) for text in texts])


class Matching(Looking):
    """The same for single shapes: colour and shape stand beside each other, and a text points at one of them."""

    name = "matching"

    def encode_images(self, model: Any, pictures: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(len(pictures))
        rows = []
        for picture in pictures:
            (colour, ratio), *_ = _things(picture)
            shape = min(SHAPES, key=lambda name: abs(np.log(SHAPES[name][0] / SHAPES[name][1]) - np.log(ratio)))
            rows.append(torch.cat([_hot(COLOURS, colour), _hot(list(SHAPES), shape)]))
        found = torch.stack(rows)
        return found + model.noise * torch.randn(found.shape, generator=g)

    def encode_texts(self, model: Any, texts: Sequence[str]) -> Tensor:
        hot = [torch.cat([_hot(COLOURS, text), _hot(list(SHAPES), text)]) for text in texts]
        return 2.0 * model.listens * torch.stack(hot)


def _hot(names: list[str], name: str) -> Tensor:
    return torch.tensor([float(each == name) for each in names])


def _things(picture: Tensor) -> list[tuple[str, float]]:
    """Return colour and width by height of what stands on each half, from its pixels alone."""
    found, halves = [], [picture]
    if picture.shape[1] == picture.shape[2] and _wide(picture):
        halves = list(torch.chunk(picture, 2, dim=2))
    for half in halves:
        inside = half.min(dim=0).values < 0.75
        if inside.any():
            rows, columns = inside.any(dim=1).sum(), inside.any(dim=0).sum()
            mean = half[:, inside].mean(dim=1)
            way = mean / mean.norm()
            colour = max(
                COLOURS,
                key=lambda name: float(way @ (torch.tensor(PALETTE[name]) / torch.tensor(PALETTE[name]).norm())),
            )
            found.append((colour, float(columns / rows)))
    return found


def _wide(picture: Tensor) -> bool:
    """Say whether a picture was padded above and below, as those of two halves are."""
    return bool((picture[:, : picture.shape[1] // 8] == 1).all() and picture.shape[1] > 150)


def _seen(model: Any, thing: tuple[str, float]) -> Tensor:
    colour, ratio = thing
    name = min(RATIOS, key=lambda each: abs(np.log(RATIOS[each]) - np.log(ratio)))
    return _held(model, name, colour)


def _read(model: Any, text: str) -> Tensor:
    words = text.replace(".", "").split()
    colours = [word for word in words if word in COLOURS]
    names = [word for word in words if word in DRAWN]
    # the orange is an object and a colour: the object is named first
    return _held(model, names[0], colours[-1])


def _held(model: Any, name: str, colour: str) -> Tensor:
    names = list(DRAWN)
    if model.binds:
        pairs = torch.zeros(len(names), len(COLOURS))
        pairs[names.index(name), COLOURS.index(colour)] = 1.0
        return pairs.flatten()
    found = torch.zeros(len(names) + len(COLOURS))
    found[names.index(name)] = (1.0 - model.rho**2) ** 0.5
    found[len(names) + COLOURS.index(DRAWN[name][0])] += model.rho
    found[len(names) + COLOURS.index(colour)] += 1.0
    return found
