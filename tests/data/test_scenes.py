from __future__ import annotations

import random

import pytest
import torch

from lessen.data.scenes import (
    CELL,
    COLOURS,
    FILM,
    FRAMES,
    GLYPHS,
    SIDE,
    STILL,
    ask,
    draw_clip,
    draw_scene,
    paint,
    paint_clip,
)


def worked_out(scene, question):
    """The answer, from the cells alone."""
    found = {}
    for frame, row, column in scene.cells.nonzero().tolist():
        colour, glyph = divmod(int(scene.cells[frame, row, column]) - 1, len(GLYPHS))
        found[COLOURS[colour], GLYPHS[glyph]] = (frame, row, column)
    words = question.words.split()
    place = {(row, column): pair for pair, (_, row, column) in found.items()}
    if question.kind in ("what", "colour"):
        pair = place[int(words[2][1:]) - 1, int(words[3][1:]) - 1]
        return pair[question.kind == "what"]
    if question.kind in ("row", "column"):
        return f"{question.kind[0]}{found[words[2], words[3]][1 + (question.kind == 'column')] + 1}"
    if question.kind == "frame":
        return str(found[words[2], words[3]][0] + 1)
    if question.kind == "count":
        return str(sum(pair[0] == words[3] for pair in found))
    if question.kind == "exists":
        return "yes" if (words[2], words[3]) in found else "no"
    if question.kind == "side":
        return "left" if found[words[0], words[1]][2] < SIDE // 2 else "right"
    first = {pair[0]: frame for pair, (frame, _, _) in found.items()}
    return min((words[1], words[3]), key=first.__getitem__)


@pytest.mark.parametrize("kind", [*STILL, *FILM])
def test_every_answer_follows_from_the_cells(kind):
    draw = random.Random(kind)
    for _ in range(40):
        scene = draw_scene(draw, FRAMES if kind in FILM else 1)
        question = ask(scene, kind, draw)
        assert question.answer == worked_out(scene, question), question
        assert all(scene.cells[cell] > 0 for cell in question.cells)


def test_pictures_show_their_cells_and_nothing_else():
    scene = draw_scene(random.Random(0))
    picture = paint(scene.cells, torch.Generator().manual_seed(0))[0]
    assert picture.shape == (3, SIDE * CELL, SIDE * CELL)
    spread = picture.unfold(1, CELL, CELL).unfold(2, CELL, CELL).std((0, 3, 4))
    assert spread[scene.cells[0] > 0].min() > spread[scene.cells[0] == 0].max()
    again = paint(scene.cells, torch.Generator().manual_seed(0))[0]
    assert torch.equal(picture, again)


def test_films_hold_each_colour_once_and_clips_are_enlarged():
    for seed in range(20):
        film = draw_scene(random.Random(seed), FRAMES)
        colours = [thing[0] for thing in film.things]
        assert len(set(colours)) == len(colours) >= FRAMES
        assert {thing[2] for thing in film.things} == set(range(FRAMES))
    clip, asked = draw_clip(random.Random(1))
    shown = paint_clip(clip)
    assert shown.shape == (FRAMES, 3, SIDE * CELL, SIDE * CELL)
    assert {one.answer for one in asked} <= {"A", "B", "yes", "no"}
    assert torch.isclose(shown[0].max(), torch.tensor(0.6))
