"""LoRA: zero at first, only corrections move, and the model learns another style without forgetting its weights."""

from __future__ import annotations

import torch
from torch import nn

from lessen.measure.record import measure_quality
from lessen.methods.adapt.lora import LoRA
from lessen.recipe import Recipe
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask


def test_a_correction_is_zero_at_first_and_low_rank_later():
    layer = nn.Linear(12, 7)
    made = LowRankDelta.around(layer, 2, 0.5, torch.Generator().manual_seed(0))
    x = torch.randn(4, 12)
    assert torch.equal(made(x), layer(x))
    made.up.data.normal_()
    expected = layer(x) + 0.5 * (x @ made.down.t()) @ made.up.t()
    torch.testing.assert_close(made(x), expected)
    torch.testing.assert_close(made.dequantise(), layer.weight.detach() + 0.5 * (made.up @ made.down).detach())
    assert torch.linalg.matrix_rank(made.dequantise() - layer.weight) == 2


def test_it_learns_another_style_and_leaves_the_weights_alone():
    task = ShapesTask(ShapesOptions(examples=1600, style="faded", pretrained="filled"))
    start = task.reference(0)
    adapted, ledger = Recipe([LoRA(rank=4)]).apply(start, task)
    before, after = (measure_quality(task, model).values["accuracy"] for model in (start, adapted))
    assert after > before + 0.15  # of 800 test pictures: eight standard errors
    state = adapted.state_dict()
    for name, tensor in start.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        kept = f"{owner}.layer.{leaf}" if owner in ("hidden", "head") else name
        assert torch.equal(state[kept], tensor), name
    assert ledger[0].findings["trained parameters"] == 4 * (256 + 64) + 4 * (64 + 4)
    assert all(parameter.requires_grad for parameter in adapted.parameters())
