"""Whoever reads patches, after the tower or inside it, gets one token for each input token, or a refusal by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import InputError
from lessen.tokens import Keep, Merge, reduce_tokens
from towers import IMAGES, SHAPE, TimmStyleViT, build, output

SOME = Merge(removed=(6,) * 4)
WIDE = {**SHAPE, "intermediate_size": 96}


def dinov2_backbone(transformers):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**SHAPE, out_features=["stage2", "stage4"], layerscale_value=0.3)
    return transformers.Dinov2Backbone(config).eval(), config


def test_restoring_every_level_changes_no_number():
    """Levels hold copies: the reduced tokens are what they are without, bit for bit, and no level is short."""
    for name in ("plain", "clip", "registers"):
        model = build(name)
        patch = reduce_tokens(model, SOME, restore=False)
        short, group = output(model), patch.state.group
        patch.remove()
        patch = reduce_tokens(model, SOME, restore=True)
        full = output(model)
        patch.remove()
        if name == "plain":
            assert torch.equal(full, short)
        else:
            assert torch.equal(full, short.gather(1, group[..., None].expand(-1, -1, 48)))


@pytest.mark.parametrize("name", ["vit", "clip", "dinov2", "registers"])
def test_hidden_states_are_whole_or_refused(name):
    model = build(name)
    patch = reduce_tokens(model, SOME)
    with pytest.raises(InputError, match="output_hidden_states reads inner levels.*restore=True"):
        model(IMAGES, output_hidden_states=True)
    patch.remove()
    patch = reduce_tokens(model, SOME, restore=True)
    with torch.no_grad():
        levels = model(IMAGES, output_hidden_states=True).hidden_states
    assert {level.shape[1] for level in levels} == {64 + patch.tower.protected}
    group = patch.state.group
    one, other = (group[0] == group[0].mode().values).nonzero()[:2, 0]
    assert torch.equal(levels[-1][0, one], levels[-1][0, other])


def test_feature_maps_keep_their_grid():
    transformers = pytest.importorskip("transformers")
    model, _ = dinov2_backbone(transformers)
    with torch.no_grad():
        before = model(IMAGES).feature_maps
        patch = reduce_tokens(model, SOME, example={"pixel_values": IMAGES})  # every map is compared
        after = model(IMAGES).feature_maps
        assert patch.restore
        assert [m.shape for m in after] == [m.shape for m in before]
        for one, other in zip(before, after, strict=True):
            assert 0 < (one - other).norm() < one.norm()
        patch.remove()
        assert all(torch.equal(a, b) for a, b in zip(before, model(IMAGES).feature_maps, strict=True))
    with pytest.raises(InputError, match="drops tokens"):
        reduce_tokens(model, Keep(rates=(0.5,) * 4, fuse=False))


def test_every_output_of_an_example_is_compared():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower, self.calls = build("plain"), 0

        def forward(self, images):
            self.calls += 1
            return {"logits": output(self.tower), "other": [torch.full((2,), float(self.calls))]}

    with pytest.raises(InputError, match="with nothing reduced the output differs by 1"):
        reduce_tokens(Two().eval(), SOME, example=IMAGES)
    silent = Two().eval()
    silent.forward = lambda images: None
    with pytest.raises(InputError, match="gives no tensor for the example"):
        reduce_tokens(silent, SOME, example=IMAGES)


@pytest.mark.parametrize("name", ["depth", "upernet", "llava"])
def test_models_that_read_inner_levels_run(name):
    transformers = pytest.importorskip("transformers")
    _, config = dinov2_backbone(transformers)
    images, inputs = IMAGES[:1], {}
    if name == "depth":
        config.reshape_hidden_states = False
        shape = {"neck_hidden_sizes": [8, 16], "fusion_hidden_size": 8, "reassemble_factors": [2, 1], "patch_size": 8}
        config = transformers.DepthAnythingConfig(
            backbone_config=config, reassemble_hidden_size=48, head_hidden_size=4, **shape
        )
        model = transformers.DepthAnythingForDepthEstimation(config).eval()
    elif name == "upernet":
        config = transformers.UperNetConfig(
            backbone_config=config, hidden_size=8, use_auxiliary_head=False, pool_scales=[1, 2], num_labels=3
        )
        model = transformers.UperNetForSemanticSegmentation(config).eval()
    else:
        text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**WIDE),
            text_config=transformers.LlamaConfig(**text, vocab_size=50, num_key_value_heads=2),
            image_token_index=49,
        )
        model = transformers.LlavaForConditionalGeneration(config).eval()
        inputs = {"input_ids": torch.tensor([[1, *[49] * 64, 2]])}
    with torch.no_grad():
        before = model(pixel_values=images, **inputs)[0]
        patch = reduce_tokens(model, SOME)
        assert patch.restore
        after = model(pixel_values=images, **inputs)[0]
    assert after.shape == before.shape
    assert not torch.equal(after, before)


def test_a_classifier_that_averages_patches_gets_them_all():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.CLIPForImageClassification(
        transformers.CLIPConfig(vision_config=WIDE, text_config={}, num_labels=3)
    ).eval()
    assert reduce_tokens(model, SOME).restore
    assert not reduce_tokens(build("vit-classifier"), SOME).restore
    wrapped = nn.Sequential(TimmStyleViT("avg")).eval()
    wrapped[0].num_prefix_tokens = 0
    assert reduce_tokens(wrapped, SOME).restore


def test_methods_that_give_inner_levels_are_refused_until_restored():
    class Levels(TimmStyleViT):
        def forward_intermediates(self, images):
            x = self.patch_embed(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            return [x := block(x) for block in self.blocks]

    model = Levels().eval()
    patch = reduce_tokens(model, SOME)
    with pytest.raises(InputError, match="forward_intermediates reads inner levels"):
        model.forward_intermediates(IMAGES)
    patch.remove()
    assert "forward_intermediates" not in model.__dict__
    reduce_tokens(model, SOME, restore=True)
    assert {level.shape[1] for level in model.forward_intermediates(IMAGES)} == {65}
