from __future__ import annotations

import copy
import itertools

import pytest
import torch

from lessen.errors import InputError
from lessen.method import Context
from lessen.methods.tokens._shared.common import survey_tower
from lessen.methods.tokens.tocom import ToCom
from lessen.methods.tokens.tome import ToMe
from lessen.recipe import Recipe
from lessen.tokens import Merge, reduce_tokens
from lessen.tokens.compensate import Compensator


def run(method, model, task):
    compact, (step,) = Recipe([method]).apply(model, task)
    return compact, step.findings


def test_without_distillation_it_is_tome(trained, task):
    images = task.inputs(task.example_batch())
    plain, _ = run(ToMe(r=8), trained, task)
    compact, findings = run(ToCom(r=8, steps=0), trained, task)
    with torch.no_grad():
        assert torch.allclose(compact(images), plain(images), atol=1e-5)
    assert findings["plug_in_parameters"] == 4 * 2 * 2 * 32 * (2 * 16)


def test_distilling_brings_the_merged_logits_closer(trained, task):
    """Held-out logits at a rate far from the trained one move towards those of the model's own rate."""
    images = torch.cat([images for images, _ in task.batches("test")])
    before = copy.deepcopy(trained.state_dict())
    plain, _ = run(ToMe(r=14), trained, task)
    compact, _ = run(ToCom(r=14, steps=80, learning_rate=1e-2, scale=1.0), trained, task)
    with torch.no_grad():
        wanted = trained(images).softmax(-1)
        error = [(model(images).softmax(-1) - wanted).square().mean() for model in (plain, compact)]
    assert error[1] < 0.9 * error[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())


def test_only_queries_and_values_change(trained, task):
    compact, _ = run(ToCom(r=6, steps=2), trained, task)
    changed = {name for name, t in compact.state_dict().items() if not torch.equal(t, trained.state_dict()[name])}
    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)


def test_rates_that_were_not_distilled(trained, task):
    with pytest.raises(InputError, match=r"9 is outside 0\.\.4"):
        run(ToCom(r=9, largest=4, steps=0), trained, task)


def test_the_plug_in_is_that_of_a_plain_loop(trained, task):
    """AdamW under a cosine, written out: the one training loop gives the same up to the rounding of a fused kernel."""
    method, context = ToCom(r=6, steps=25, learning_rate=1e-2, scale=1.0), Context(seed=3)
    survey = survey_tower(copy.deepcopy(trained), task, context)
    found = method.distil(survey)

    student = copy.deepcopy(trained).eval().requires_grad_(False)
    survey, generator = survey_tower(student, task, context), torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    expected = Compensator(student, largest=found.largest, rank=method.rank)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25, eta_min=1e-4)
    passes = (batch for number in range(25) for batch in task.batches("train", seed=3 * 1_000_003 + number))
    nothing = Merge(removed=(0,) * survey.shape.depth)
    teacher, patched = reduce_tokens(copy.deepcopy(trained).eval(), nothing), reduce_tokens(student, nothing)
    for batch in itertools.islice(passes, 25):
        source, target = method._pair(found.largest, generator)
        optimizer.zero_grad()
        method._loss(teacher, patched, expected, survey, batch, source, target).backward()
        optimizer.step()
        schedule.step()
    for name, tensor in expected.state_dict().items():
        # a step moves a value by up to 1e-2, rounding by 1e-6 on some processors
        assert torch.allclose(tensor, found.state_dict()[name], atol=1e-5), name
