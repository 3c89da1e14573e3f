"""Drawn pictures of coloured glyphs on a grid, and questions that need one cell, a few cells, or all of them.

picture  12 x 12 cells of 6 x 6 pixels, 8 to 14 of them with a glyph, each pair of colour and glyph at most once
film     4 pictures of 1 or 2 glyphs, each colour at most once; or one blob that moves

Where (`what`, `colour`, `row`, `column`) and `side` need the cell that is named; `exists` and `count` need all cells,
`frame` and `order` the pictures of a film, `motion` several of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.data.clips import FRAMES as CLIP_FRAMES
from lessen.data.clips import SIDE as CLIP_SIDE
from lessen.data.clips import clip_frame, clip_questions

SIDE, CELL, FRAMES = 12, 6, 4
COLOURS = ("red", "green", "blue", "yellow", "cyan", "purple")
GLYPHS = ("square", "ring", "cross", "plus", "bar", "pole", "stairs", "cup")
LOCATION = ("what", "colour", "row", "column")
STILL = (*LOCATION, "count", "exists", "side")
FILM = ("frame", "order")
MOTION = "motion"
KINDS = (*STILL, *FILM, MOTION)

_PAINT = torch.tensor(
    [[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 1.0], [0.9, 0.9, 0.1], [0.1, 0.9, 0.9], [0.8, 0.2, 0.9]]
)
_DRAWN = (
    "#####/#####/#####/#####/#####", ".###./#...#/#...#/#...#/.###.", "#...#/.#.#./..#../.#.#./#...#",
    "..#../..#../#####/..#../..#..", "...../#####/#####/#####/.....", ".###./.###./.###./.###./.###.",
    "#..../##.../###../####./#####", "#...#/#...#/#...#/#...#/#####",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One question about a scene: words, and the one word that answers it."""

    kind: str
    words: str
    answer: str
    cells: tuple[tuple[int, int, int], ...] = ()
    """(frame, row, column) of each cell that the answer is read from, as far as there are some."""


@dataclass(frozen=True)
class Scene:
    """What is in the cells of one picture, or of the pictures of a film."""

    cells: Tensor
    """int64 [frames, 12, 12]: 0 where a cell is empty, else 1 + colour * 8 + glyph."""

    @property
    def things(self) -> list[Thing]:
        """Return (colour, glyph, frame, row, column) of each glyph, rows and columns from 0."""
        found = self.cells.nonzero().tolist()
        return [(*divmod(int(self.cells[f, r, c]) - 1, len(GLYPHS)), f, r, c) for f, r, c in found]


def draw_scene(draw: random.Random, frames: int = 1) -> Scene:
    """Return a scene of one picture, or of a film."""
    cells = torch.zeros(frames, SIDE, SIDE, dtype=torch.int64)
    if frames == 1:
        pairs = draw.sample(range(len(COLOURS) * len(GLYPHS)), draw.randint(8, 14))
        where = [0] * len(pairs)
    else:
        colours = draw.sample(range(len(COLOURS)), draw.randint(frames, len(COLOURS)))
        pairs = [colour * len(GLYPHS) + draw.randrange(len(GLYPHS)) for colour in colours]
        where = [*range(frames), *(draw.randrange(frames) for _ in pairs[frames:])]
    places = draw.sample(range(SIDE * SIDE), len(pairs))
    for pair, frame, place in zip(pairs, where, places, strict=True):
        cells[(frame, *divmod(place, SIDE))] = 1 + pair
    return Scene(cells)


def paint(cells: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures float32 [..., 3, 72, 72] about 0 of cells int64 [..., 12, 12]: glyphs one pixel off, noise."""
    flat = cells.reshape(-1, SIDE, SIDE)
    shifts = torch.randint(4, flat.shape, generator=generator)
    grey = 0.1 + 0.2 * torch.rand(len(flat), 1, 1, 1, generator=generator)
    patches = _patches()[flat, shifts]  # [n, 12, 12, 3 + 1, 6, 6]: paint and how much covers the ground
    picture = patches.permute(0, 3, 1, 4, 2, 5).reshape(len(flat), 4, SIDE * CELL, SIDE * CELL)
    picture = picture[:, :3] + grey * (1 - picture[:, 3:])
    picture = picture + 0.08 * torch.randn(picture.shape, generator=generator) - 0.3
    return picture.reshape(*cells.shape[:-2], 3, SIDE * CELL, SIDE * CELL)


def paint_clip(clip: Tensor) -> Tensor:
    """Return FRAMES pictures float32 [4, 3, 72, 72] of a clip [frames, 1, 16, 16], evenly taken and enlarged."""
    places = torch.arange(FRAMES) * len(clip) // FRAMES
    scale = SIDE * CELL // CLIP_SIDE
    large = clip[places].repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    margin = (SIDE * CELL - CLIP_SIDE * scale) // 2
    padded = F.pad(large, (margin,) * 4).expand(-1, 3, -1, -1)
    return 0.2 + 0.7 * padded - 0.3


def draw_clip(draw: random.Random) -> tuple[Tensor, list[Asked]]:
    """Return a clip float32 [8, 1, 16, 16] of one blob that moves, and questions on its shape, direction and speed."""
    shape, rightward, fast = draw.choice(("square", "bar")), draw.random() < 0.5, draw.random() < 0.5
    place, start = draw.uniform(3, 12), draw.uniform(0.5, 1.5)
    pace = 1.5 * (1.0 if fast else 0.5) * draw.uniform(0.9, 1.1)
    moved = [start + pace * frame for frame in range(CLIP_FRAMES)]
    frames = [clip_frame(shape, place, x) for x in (moved if rightward else moved[::-1])]
    asked = clip_questions("", shape, rightward, fast, flip=draw.random() < 0.5)
    return torch.stack(frames), [Asked(MOTION, q.prompt, q.answer.partition(".")[0]) for q in asked]


def ask(scene: Scene, kind: str, draw: random.Random) -> Asked:
    """Return a question of a kind about a scene. Raises KeyError for an unknown kind."""
    words, answer, shown = _ASK[kind](scene.things, draw)
    return Asked(kind, words, answer, tuple(thing[2:] for thing in shown))


# -- questions ---------------------------------------------------------------------------------------------------------
Thing = tuple[int, int, int, int, int]
Answer = tuple[str, str, Sequence[Thing]]
"""Words, answer, and the things that it is read from."""


def _named(thing: Thing) -> str:
    return f"{COLOURS[thing[0]]} {GLYPHS[thing[1]]}"


def _what(things: Sequence[Thing], draw: random.Random) -> Answer:
    one = draw.choice(things)
    return f"what at r{one[3] + 1} c{one[4] + 1} ?", GLYPHS[one[1]], [one]


def _colour(things: Sequence[Thing], draw: random.Random) -> Answer:
    one = draw.choice(things)
    return f"colour at r{one[3] + 1} c{one[4] + 1} ?", COLOURS[one[0]], [one]


def _row(things: Sequence[Thing], draw: random.Random) -> Answer:
    one = draw.choice(things)
    return f"row of {_named(one)} ?", f"r{one[3] + 1}", [one]


def _column(things: Sequence[Thing], draw: random.Random) -> Answer:
    one = draw.choice(things)
    return f"column of {_named(one)} ?", f"c{one[4] + 1}", [one]


def _count(things: Sequence[Thing], draw: random.Random) -> Answer:
    colour = draw.randrange(len(COLOURS))
    found = [one for one in things if one[0] == colour]
    return f"how many are {COLOURS[colour]} ?", str(len(found)), found


def _exists(things: Sequence[Thing], draw: random.Random) -> Answer:
    if draw.random() < 0.5:
        one = draw.choice(things)
        return f"is there {_named(one)} ?", "yes", [one]
    present = {one[:2] for one in things}
    absent = [(c, g, 0, 0, 0) for c in range(len(COLOURS)) for g in range(len(GLYPHS)) if (c, g) not in present]
    return f"is there {_named(draw.choice(absent))} ?", "no", []


def _side(things: Sequence[Thing], draw: random.Random) -> Answer:
    one = draw.choice(things)
    return f"{_named(one)} left or right ?", "left" if one[4] < SIDE // 2 else "right", [one]


def _frame(things: Sequence[Thing], draw: random.Random) -> Answer:
    one = draw.choice(things)
    return f"frame of {_named(one)} ?", str(one[2] + 1), [one]


def _order(things: Sequence[Thing], draw: random.Random) -> Answer:
    one, other = draw.sample(things, 2)
    while one[2] == other[2]:
        one, other = draw.sample(things, 2)
    first = min(one, other, key=lambda thing: thing[2])
    return f"first {COLOURS[one[0]]} or {COLOURS[other[0]]} ?", COLOURS[first[0]], [one, other]


_ASK: dict[str, Callable[[Sequence[Thing], random.Random], Answer]] = {
    "what": _what, "colour": _colour, "row": _row, "column": _column, "count": _count, "exists": _exists,
    "side": _side, "frame": _frame, "order": _order,
}  # fmt: skip


def _patches() -> Tensor:
    """Return float32 [49, 4 shifts, 3 + 1, 6, 6]: the paint of each cell, and what share of a pixel it covers."""
    if not _MADE:
        shapes = torch.tensor([[[c == "#" for c in line] for line in one.split("/")] for one in _DRAWN]).float()
        table = torch.zeros(1 + len(COLOURS) * len(GLYPHS), 4, 4, CELL, CELL)
        for number in range(len(COLOURS) * len(GLYPHS)):
            colour, glyph = divmod(number, len(GLYPHS))
            for shift in range(4):
                down, across = divmod(shift, 2)
                cover = table[1 + number, shift, :, down : down + 5, across : across + 5]
                cover[3] = shapes[glyph]
                cover[:3] = shapes[glyph] * _PAINT[colour][:, None, None]
        _MADE.append(table)
    return _MADE[0]


_MADE: list[Tensor] = []
