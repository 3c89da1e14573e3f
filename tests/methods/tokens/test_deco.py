from __future__ import annotations

import pytest
import torch

from lessen.errors import InputError
from lessen.methods.tokens.deco import DeCo
from lessen.recipe import Recipe
from lessen.tokens.pooling import pool_features
from lessen.tokens.stored import patch_of


def run(method, model, task):
    compact, (step,) = Recipe([method]).apply(model, task)
    return compact, step.findings


def test_the_last_block_hands_out_the_pooled_grid(trained, task):
    compact, findings = run(DeCo(), trained, task)
    assert findings["tokens_after_block"] == [65, 65, 65, 17]
    images = task.inputs(task.example_batch())
    handed = []
    compact.blocks[-1].register_forward_hook(lambda module, inputs, out: handed.append(out))
    with torch.no_grad():
        compact(images)
        x = trained.embed(images)
        for block in trained.blocks[:-1]:
            x = block(x)
        block = trained.blocks[-1]
        x = pool_features(x + block.attn(block.norm1(x)), (8, 8), (4, 4), protected=1)
        wanted = x + block.mlp(block.norm2(x))
    assert torch.allclose(handed[0], wanted, atol=1e-5)
    assert patch_of(compact).state.size[0, 1:].eq(4).all()


def test_an_earlier_block_saves_in_the_tower(trained, task):
    compact, findings = run(DeCo(block=1), trained, task)
    assert findings["macs_share"] < 0.6
    assert task.score(compact, "test") > 0.3


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"window": 3}, "does not divide the 8x8"), ({"rows": 7}, "no grid of 7 rows"), ({"block": 4}, "blocks 0..3")],
)
def test_grids_that_do_not_fit(knobs, message, trained, task):
    with pytest.raises(InputError, match=message):
        run(DeCo(**knobs), trained, task)
