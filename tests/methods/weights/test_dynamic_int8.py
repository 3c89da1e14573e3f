from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import NothingMatchedError
from lessen.method import Context
from lessen.methods.weights.dynamic_int8 import DynamicInt8Linears, lost_columns
from lessen.recipe import Recipe
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.testing.toys import TableTask


@pytest.mark.parametrize("activations", ["row", "tensor"])
def test_scores_hardly_move(activations):
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([DynamicInt8Linears(activations=activations)]).apply(model, task)
    scores, _ = task.predictions(model)
    compact, _ = task.predictions(result)
    assert abs(scores - compact).max() < 0.05 * scores.std() + 0.02
    assert type(result.second).__name__ == "Int8Linear"
    assert "min_weights" in ledger[0].findings["skipped"]["last"]


def test_layers_that_attention_reads_directly_are_left_alone():
    encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
    context = Context()
    model = nn.Sequential(encoder, nn.Linear(64, 64))
    made = DynamicInt8Linears().apply(model, None, context)
    with torch.no_grad():
        assert made(torch.randn(2, 5, 64)).shape == (2, 5, 64)
    assert set(context.findings["skipped"]) == {"0.self_attn.out_proj", "0.linear1", "0.linear2"}
    with pytest.raises(NothingMatchedError, match="attention"):
        DynamicInt8Linears().apply(nn.Sequential(nn.MultiheadAttention(64, 4)), None, Context())


def test_a_ridge_head_on_features_of_different_scales_keeps_its_answers():
    """Its small weights belong to large features: int8 with one step an output would round them away."""
    draw = torch.Generator().manual_seed(0)
    scale = torch.logspace(-2, 2, 200)
    layer, even = nn.Linear(200, 10), nn.Linear(10, 200)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(10, 200, generator=draw) / scale)
    features = torch.randn(300, 200, generator=draw) * scale
    wanted = layer(features)
    rounded = Int8Linear.from_dense(layer)(features)
    context = Context()
    made = DynamicInt8Linears().apply(nn.Sequential(layer, even), None, context)
    assert float((rounded - wanted).norm() / wanted.norm()) > 0.3
    assert float((made[0](features) - wanted).norm() / wanted.norm()) < 0.03
    assert context.findings["equalised"] == ["0"]
    assert isinstance(made[0].layer, Int8Linear)
    assert isinstance(made[1], Int8Linear)
    assert lost_columns(torch.zeros(3, 4)) == 0.0
