"""Methods that put other tokens in place of pictures: counts by hand, what learns, a short training that helps."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import NothingMatchedError
from lessen.methods.tokens.adem_vl import ADEMVL
from lessen.methods.tokens.free_video_llm import FreeVideoLLM
from lessen.methods.tokens.hires_llava import HiResLLaVA
from lessen.methods.tokens.slime import SliME
from lessen.recipe import Recipe
from lessen.testing.colours import ColourTask
from lessen.testing.glances import GlanceTask

pytest.importorskip("transformers")

COUNTS = [
    (ADEMVL(), 1, 1),
    (HiResLLaVA(), 1, 4),
    (HiResLLaVA(window=4), 4, 4),
    (SliME(side=2, keep=5), 4, 16 + 1 + 5),
    (FreeVideoLLM(slow=1, middle=2, fast=9, coarse=(1, 1), roi=1), 4, 8 + 16 + 4),
]


def built(task):
    torch.manual_seed(0)
    return task.build().eval()


@pytest.mark.parametrize(("method", "frames", "tokens"), COUNTS)
def test_tokens_and_multiply_adds_are_as_counted(method, frames, tokens):
    task = GlanceTask(frames, sizes=(32, 16), batch=8)
    _, ledger = Recipe([method]).apply(built(task), task)
    found = ledger[0].findings
    assert found["visual_tokens"] == tokens
    assert found["tokens_out"] == 3 + tokens
    layer = [n * (4 * 32 * 32 + 3 * 32 * 64) + 2 * n * n * 32 for n in (3 + tokens, 3 + 16 * frames)]
    assert found["prefill_macs_share"] == pytest.approx(layer[0] / layer[1])


@pytest.mark.parametrize(("learns", "moves"), [("sight", {"hires_llava"}), ("projector", {"hires_llava", "projector"})])
def test_only_what_is_said_learns(learns, moves):
    task = GlanceTask(1, sizes=(64, 16), batch=16)
    before = built(task)
    after, _ = Recipe([HiResLLaVA(epochs=1, learns=learns)]).apply(before, task)
    old = dict(before.named_parameters())
    moved = {name for name, one in after.named_parameters() if name not in old or not torch.equal(one, old[name])}
    assert {
        "hires_llava" if "hires" in name else "projector" if "projector" in name else name for name in moved
    } == moves
    assert all(one.requires_grad for one in after.parameters())


def test_models_that_see_no_pictures_are_refused():
    task = ColourTask()
    for method in (ADEMVL(), FreeVideoLLM()):
        with pytest.raises(NothingMatchedError, match="visual tokens"):
            Recipe([method]).apply(task.build(), task)
    task = GlanceTask(1, sizes=(32, 16), batch=8)
    with pytest.raises(NothingMatchedError, match="another sight"):
        Recipe([HiResLLaVA(), ADEMVL()]).apply(built(task), task)
