"""Methods that put other tokens in place of pictures: counts by hand, what learns, what is refused."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import InputError, NothingMatchedError
from lessen.methods.tokens.adem_vl import ADEMVL
from lessen.methods.tokens.free_video_llm import FreeVideoLLM
from lessen.methods.tokens.hires_llava import HiResLLaVA
from lessen.methods.tokens.slime import SliME
from lessen.methods.weights.rtn import RTN
from lessen.recipe import Recipe
from lessen.tasks.multimodal.grid import GridOptions, GridTask
from lessen.testing.colours import ColourTask

pytest.importorskip("transformers")

COUNTS = [
    (ADEMVL(), "stills", 1),
    (HiResLLaVA(), "stills", 36),
    (HiResLLaVA(window=4), "films", 4 * 9),
    (SliME(side=2, keep=5), "films", 144 + 1 + 5),
    (FreeVideoLLM(slow=1, middle=2, fast=9, coarse=(1, 1), roi=1), "films", 72 + 2 * 72 + 4),
]


def asked(about):
    return GridTask(GridOptions(about=about, questions=10, train_pictures=10, batch=14, timing_batch=2))


def built(task):
    torch.manual_seed(0)
    return task.build().eval()


@pytest.mark.parametrize(("method", "about", "tokens"), COUNTS)
def test_tokens_and_multiply_adds_are_as_counted(method, about, tokens):
    task = asked(about)
    _, ledger = Recipe([method]).apply(built(task), task)
    found = ledger[0].findings
    whole = task.example_batch().inputs["input_ids"].shape[1]
    left = whole - (1 if about == "stills" else 4) * 144 + tokens
    assert found["visual_tokens"] == tokens
    assert found["tokens_out"] == left
    layer = [n * (4 * 64 * 64 + 3 * 64 * 128) + 2 * n * n * 64 for n in (left, whole)]
    assert found["prefill_macs_share"] == pytest.approx(layer[0] / layer[1])


@pytest.mark.parametrize(("learns", "moves"), [("sight", {"hires_llava"}), ("projector", {"hires_llava", "projector"})])
def test_only_what_is_said_learns(learns, moves):
    task = asked("stills")
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
    task = asked("stills")
    with pytest.raises(NothingMatchedError, match="another sight"):
        Recipe([HiResLLaVA(), ADEMVL()]).apply(built(task), task)


def test_weights_that_an_earlier_patch_reads_are_changed_before_it():
    task = asked("stills")
    with pytest.raises(InputError, match="put steps that change weights before those that change how a model runs"):
        Recipe([HiResLLaVA(), RTN(bits=4)]).apply(built(task), task)
    model, _ = Recipe([RTN(bits=4), HiResLLaVA()]).apply(built(task), task)
    assert task.forward(model, task.example_batch()).isfinite().all()
