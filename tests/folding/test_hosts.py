"""Folding on models that were not written for it: our click models, and Hugging Face architectures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.artifact import folder as artifact
from lessen.folding.run import fold
from lessen.tasks.ctr.models import MODELS
from plain_click_models import build, inputs


@pytest.mark.parametrize("name", sorted(MODELS))
def test_click_models_answer_as_before(name):
    """Batch norms of the perceptrons go; what else is folded is proven like it, to rounding in float64."""
    model = build(name)
    found = fold(model, [((), inputs())], torch.Generator())
    assert found.error <= found.bound
    assert not any(isinstance(module, nn.BatchNorm1d) for module in found.model.modules()), found.kept
    with torch.no_grad():
        torch.testing.assert_close(found.model(**inputs(5)), model(**inputs(5)), rtol=1e-9, atol=1e-12)


HOSTS = {
    "resnet": ("ResNetModel", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "regnet": (
        "RegNetModel",
        "RegNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
    ),
    "mobilenet": ("MobileNetV2Model", "MobileNetV2Config", {"depth_multiplier": 0.35, "image_size": 32}),
    "efficientnet": (
        "EfficientNetModel",
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "image_size": 64, "hidden_dim": 320},
    ),  # depthwise convolutions of a class of their own
    "levit": (
        "LevitModel",
        "LevitConfig",
        {
            "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
            "key_dim": [8, 8, 8], "mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2],
        },
    ),
    "mobilevit": (
        "MobileViTModel",
        "MobileViTConfig",
        {
            "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 16, 24, 24, 24, 32],
            "num_attention_heads": 2,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTS)
def test_hugging_face_models_answer_as_before(name, tmp_path):
    """Every batch norm goes; random statistics stand for training."""
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    cls, config, changes = HOSTS[name]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**changes)
    model = getattr(transformers, cls)(made).eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    pixels = torch.randn(4, 3, changes.get("image_size", 32), changes.get("image_size", 32))
    found = fold(model, [((), {"pixel_values": pixels})], torch.Generator())
    left = [path for path, part in found.model.named_modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert not left, found.kept
    assert found.error <= found.bound
    fresh = torch.randn(2, *pixels.shape[1:])
    with torch.no_grad():
        one, other = (each(pixel_values=fresh).last_hidden_state for each in (found.model, model))
    assert float((one - other).abs().max() / other.abs().max()) < 1e-4
    artifact.save(tmp_path / "a", found.model, model)
    loaded = artifact.load(tmp_path / "a", model=getattr(transformers, cls)(made))
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=fresh).last_hidden_state, one)


def test_a_decoder_without_norms_of_batches_keeps_every_layer():
    """A causal model takes integers; positions by length are no constants."""
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 50, (2, 9))
    found = fold(model, [((), {"input_ids": ids})], torch.Generator())
    longer = torch.randint(3, 50, (1, 30))
    with torch.no_grad():
        torch.testing.assert_close(found.model(longer).logits, model(longer).logits, rtol=1e-5, atol=1e-5)
