"""Large drawn pictures, cut to an overview and tiles, and packed questions for a model that sees them by fewer tokens.

cells 12 x 12 -> each in one of four places of its 2 x 2 fine cells -> picture [3,144,144] -> cut_tiles: overview and
2 x 2 tiles [5,3,72,72]. In the overview a glyph is three pixels wide: its colour is seen, not its shape; in its tile
it is as the tower knows it; rows and columns that are asked for are of the whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lessen.data.scenes import CELL, SIDE, STILL, ask, draw_scene, paint
from lessen.tasks.multimodal.grid_model import TOKENS, prompts
from lessen.tasks.multimodal.packing import Packing, packed_attention
from lessen.tasks.multimodal.train_grid import ASKED, PICTURES, Lesson, lesson, taught
from lessen.tasks.multimodal.words import IMAGE, encode
from lessen.tokens.visual.tiles import cut_tiles

ZOOM = 2
SHOWN = 1 + ZOOM * ZOOM
"""Pictures of SIDE * CELL pixels that a large one becomes."""


def paint_large(cells: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures float32 [n, 3, 144, 144] of cells int64 [n, 12, 12], glyphs on a quarter of their cells."""
    count, fine = len(cells), torch.zeros(len(cells), ZOOM * SIDE, ZOOM * SIDE, dtype=cells.dtype)
    quarter = torch.randint(ZOOM * ZOOM, cells.shape, generator=generator)
    for place in range(ZOOM * ZOOM):
        down, across = divmod(place, ZOOM)
        fine[:, down::ZOOM, across::ZOOM] = torch.where(quarter == place, cells, 0)
    parts = fine.view(count, ZOOM, SIDE, ZOOM, SIDE).permute(0, 1, 3, 2, 4)
    painted = paint(parts, generator)
    size = ZOOM * SIDE * CELL
    return painted.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, size, size)


def cut(pictures: Tensor) -> Tensor:
    """Return overview and tiles [n * 5, 3, 72, 72] of pictures [n, 3, 144, 144]."""
    return torch.cat([cut_tiles(picture, SIDE * CELL, ZOOM * ZOOM)[0] for picture in pictures])


def large_lesson(step: int, seed: int) -> Lesson:
    """Return six large pictures and 36 questions about each; placeholders of all its parts stand in one run."""
    draw, generator = random.Random(f"large {seed} {step}"), torch.Generator().manual_seed(7_000_003 * seed + step)
    scenes = [draw_scene(draw) for _ in range(PICTURES)]
    asked = [
        sorted((ask(scene, kind, draw) for kind in ASKED), key=lambda one: len(one.words.split())) for scene in scenes
    ]
    pictures = paint_large(torch.stack([scene.cells[0] for scene in scenes]), generator)
    return taught(cut(pictures), asked, 1, SHOWN * TOKENS)


def still_lesson(step: int, seed: int) -> Lesson:
    """Return six pictures as the task has them, 144 placeholders each."""
    return lesson(step + step // 2 + 1, seed)  # every third is a film


def single_prompts(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield (kind, inputs, word that answers) of questions about large pictures, one prompt each, kinds in turn."""
    for number in range(count):
        draw, generator = (
            random.Random(f"single {seed} {number}"),
            torch.Generator().manual_seed(9_000_011 * seed + number),
        )
        scene, kind = draw_scene(draw), STILL[number % len(STILL)]
        one = ask(scene, kind, draw)
        inputs: dict[str, Any] = prompts([one.words], 1, SHOWN * TOKENS)
        yield kind, inputs | {"pixel_values": cut(paint_large(scene.cells, generator))}, encode(one.answer)[0]


@contextmanager
def repacked(model: Any, added: int, lesson: Lesson) -> Iterator[None]:
    """Let packed questions stand `added` places later than they were written, in the decoder of `model`."""

    def shifted(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        before = lesson.inputs["packing"].prefix
        own = lesson.inputs["position_ids"][:, before:] + added
        front = torch.arange(before + added).expand(len(own), -1)
        packing = Packing(before + added, lesson.inputs["packing"].groups)
        return arguments, {**keywords, "position_ids": torch.cat([front, own], 1), "packing": packing}

    handle = model.model.language_model.register_forward_pre_hook(shifted, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def answers(model: Any, lesson: Lesson, tokens: int) -> Tensor:
    """Return the logits of the word after each question, [B, questions, words], where a prompt sees `tokens` tokens."""
    added = tokens - int((lesson.inputs["input_ids"][0] == IMAGE).sum())
    with packed_attention(model), repacked(model, added, lesson):
        hidden = model.model(**lesson.inputs, use_cache=False).last_hidden_state
    logits: Tensor = model.lm_head(hidden[:, lesson.columns + added])
    return logits
