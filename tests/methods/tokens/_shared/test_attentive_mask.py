from __future__ import annotations

import torch

from lessen.architectures.vit import find_tower
from lessen.methods.tokens._shared.attentive_mask import AttentiveMasking
from lessen.methods.tokens.tome import ToMe
from lessen.recipe import Recipe


def test_training_sees_half_the_tokens_and_inference_all_of_them(trained, task):
    seen = []
    masking = AttentiveMasking(trained)  # its moving average is a copy of what there is now
    tower = find_tower(trained)
    counting = tower.blocks[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    images = task.inputs(task.example_batch())
    try:
        with torch.no_grad():
            trained(images)
            trained.train()(images)
    finally:
        trained.eval()
        masking.remove()
        counting.remove()
    assert seen == [65, 1 + 4 * (16 // 2 + 1)]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trained.modules())


def test_fine_tuning_under_a_reduction_can_mask_too(trained, task):
    compact, (step,) = Recipe([ToMe(r=12, fine_tune_epochs=2, fine_tune_share=0.5)]).apply(trained, task)
    assert step.findings["training_tokens"] == 1 + 4 * (16 // 2 + 1)
    frozen, _ = Recipe([ToMe(r=12)]).apply(trained, task)
    whole, _ = Recipe([ToMe(r=12, fine_tune_epochs=2)]).apply(trained, task)
    assert task.score(compact, "test") > task.score(frozen, "test")
    assert any(not torch.equal(a, b) for a, b in zip(compact.parameters(), whole.parameters(), strict=True))
