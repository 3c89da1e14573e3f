from __future__ import annotations

import torch

from lessen.measure import count_macs
from lessen.methods.tokens.attentive_mask import AttentiveMask
from lessen.recipe import Recipe


def test_training_sees_half_the_tokens_and_the_model_all_of_them(trained, task):
    compact, (step,) = Recipe([AttentiveMask(epochs=1)]).apply(trained, task)
    assert step.findings["training_tokens"] == 1 + 4 * (16 // 2 + 1)
    assert count_macs(task, compact) == count_macs(task, trained)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in compact.modules())
    images = task.inputs(task.example_batch())
    with torch.no_grad():
        assert not torch.equal(compact(images), trained(images))
    assert task.score(compact, "test") > 0.7
