from __future__ import annotations

import copy

import pytest
import torch

from lessen.errors import InputError
from lessen.methods.tokens.tocom import ToCom
from lessen.methods.tokens.tome import ToMe
from lessen.recipe import Recipe


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
