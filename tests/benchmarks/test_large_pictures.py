"""Large pictures of the benchmark of adapters: packed questions through a sight are single prompts, tiles show shapes."""

from __future__ import annotations

import pytest
import torch

from lessen.data.scenes import CELL, SIDE
from lessen.tasks.multimodal.grid import GridTask
from lessen.tokens.visual.hires import HiResLLaVA

pytest.importorskip("transformers")
large = pytest.importorskip("benchmarks.tokens.large", reason="benchmarks are not part of this installation")


def test_packed_questions_through_a_sight_are_answered_as_single_prompts():
    torch.manual_seed(0)
    model = GridTask().reference()
    HiResLLaVA(64, 64, (2, 2), (12, 12), (0, 1)).eval().attach(model)
    lesson = large.large_lesson(0, 5)
    ids, packing = lesson.inputs["input_ids"][:1], lesson.inputs["packing"]
    with torch.no_grad():
        answers, at, asked = large.answers(model, lesson, 289), packing.prefix, 0
        for count, length in packing.groups:
            words = ids[:, at : at + length]
            one = {
                "input_ids": torch.cat([ids[:, : packing.prefix], words], 1),
                "pixel_values": lesson.inputs["pixel_values"][:5],
            }
            assert (model(**one).logits[0, -1] - answers[0, asked]).abs().max() < 1e-4
            at, asked = at + count * length, asked + count


def test_tiles_show_each_glyph_as_the_task_does_and_the_overview_on_a_quarter_of_its_cell():
    cells = torch.zeros(1, SIDE, SIDE, dtype=torch.int64)
    cells[0, 7, 2] = 1
    parts = large.cut(large.paint_large(cells, torch.Generator().manual_seed(0)))
    assert parts.shape == (5, 3, SIDE * CELL, SIDE * CELL)
    red = torch.nn.functional.avg_pool2d(parts[:, 0] - parts[:, 1], CELL)  # of each patch
    (tile,) = (red[1:] > 0.3).nonzero().tolist()
    assert tile[0] == 2  # below, on the left
    assert tile[1] in (2, 3)  # the two fine rows of row 7, the first of its tile being 6
    assert tile[2] in (4, 5)
    assert (red[0] > 0.08).nonzero().tolist() == [[7, 2]]
    assert red[0].max() < 0.3 * red[1:].max()


def test_stills_are_never_films():
    assert all(len(large.still_lesson(step, 3).inputs["pixel_values"]) == 6 for step in range(9))
