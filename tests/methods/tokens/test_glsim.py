from __future__ import annotations

import torch

from lessen.methods.tokens.glsim import GLSim
from lessen.recipe import Recipe
from lessen.tokens.scores import class_similarity
from lessen.tokens.stored import patch_of


def test_the_most_similar_tokens_are_kept(trained, task):
    images = task.inputs(task.example_batch())
    with torch.no_grad():
        x = trained.embed(images)
        for block in trained.blocks[:2]:
            x = block(x)
        block = trained.blocks[2]
        x = x + block.attn(block.norm1(x))
    wanted = 1 + class_similarity(x)[:, 1:].topk(20).indices.sort().values
    compact, _ = Recipe([GLSim(keep=20 / 64, blocks=(2,))]).apply(trained, task)
    with torch.no_grad():
        compact(images)
    group = patch_of(compact).state.group
    kept = torch.stack([row.nonzero().flatten() for row in (group >= 0)])[:, 1:]
    assert torch.equal(kept, wanted)
