from __future__ import annotations

import pytest

from lessen.errors import InputError
from lessen.methods.tokens.evit import EViT, RandomDrop
from lessen.methods.tokens.glsim import GLSim
from lessen.recipe import Recipe


def run(method, model, task):
    compact, (step,) = Recipe([method]).apply(model, task)
    return compact, step.findings


def test_keep_rates_and_places(trained, task):
    _, findings = run(EViT(keep=0.7), trained, task)
    assert findings["rates"] == [1.0, 0.7, 0.7, 0.7]
    assert findings["tokens_after_block"][1] == 1 + 45 + 1  # ceil(0.7 * 64), class and fused token
    _, findings = run(EViT(keep=0.5, blocks=(2,), fuse=False), trained, task)
    assert findings["tokens_after_block"] == [65, 65, 33, 33]


def test_attended_patches_matter_more_than_random_ones(trained, task):
    scored = task.score(run(EViT(macs=0.6), trained, task)[0], "test")
    chance = task.score(run(RandomDrop(macs=0.6), trained, task)[0], "test")
    assert scored > chance


@pytest.mark.parametrize("method", [EViT(macs=0.7), EViT(macs=0.7, fuse=False), GLSim(macs=0.7), RandomDrop(macs=0.7)])
def test_budgets(method, trained, task):
    compact, findings = run(method, trained, task)
    assert 0.6 < findings["macs_share"] <= 0.7
    assert task.score(compact, "test") > 0.25


def test_blocks_outside_the_tower(trained, task):
    with pytest.raises(InputError, match=r"blocks \[9\] are not all among 0..3"):
        run(EViT(keep=0.5, blocks=(9,)), trained, task)
