from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.architectures.tower_block import TowerBlock
from lessen.architectures.vit import find_tower
from lessen.errors import InputError, NothingMatchedError
from lessen.tokens import Merge, reduce_tokens
from towers import IMAGES, NAMES, TimmStyleViT, build, output

PROTECTED = {"siglip": 0, "timm-mean": 0, "registers": 5, "dinov3": 5, "dinov3-gated": 5}


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_exact_with_nothing_reduced_and_is_undone(name):
    model = build(name)
    before, keys = output(model), list(model.state_dict())
    patch = reduce_tokens(model, Merge(removed=(0,) * 4), example=IMAGES)
    assert torch.equal(output(model), before)
    assert patch.tower.protected == PROTECTED.get(name, 1)
    patch.remove()
    patch = reduce_tokens(model, Merge(removed=(6,) * 4), example=IMAGES)
    changed = output(model)
    tokens = 64 + patch.tower.protected
    assert patch.state.size.shape[1] == tokens - 24
    assert patch.state.size.sum(1).tolist() == [float(tokens)] * 3
    assert list(model.state_dict()) == keys
    patch.remove()
    assert torch.equal(output(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())
    assert changed.shape != before.shape or not torch.equal(changed, before)


@pytest.mark.parametrize("name", ["vit", "clip", "siglip", "dinov2", "plain", "timm"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_log_sizes_equal_attention_over_repeated_keys(name, kernel):
    model = build(name)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(kernel)
    elif kernel == "eager":
        pytest.skip("one kernel only")
    tower = find_tower(model)
    parts = TowerBlock(tower.blocks[0], tower.family)
    x, size = torch.randn(2, 9, 48), torch.randint(1, 4, (9,))
    repeated = torch.repeat_interleave(torch.arange(9), size)
    first = size.cumsum(0) - size
    with torch.no_grad():
        biased = parts.attend(x, size.float().log()[None, None, None].expand(2, 1, 1, 9))
        plain = parts.attend(x[:, repeated], None)[:, first]
    assert torch.allclose(biased, plain, atol=1e-5)


@pytest.mark.parametrize("name", ["siglip", "timm-mean", "dinov2-classifier"])
def test_pooling_reads_every_input_token(name):
    """Restoring the grid gives mean pooling its size weights and attention pooling its log sizes."""
    model = build(name)
    patch = reduce_tokens(model, Merge(removed=(5,) * 4))
    assert patch.restore
    seen = []
    patch.tower.blocks[-1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    output(model)
    assert seen[0].shape[1] == 64 + patch.tower.protected


def test_query_and_key_norms_are_part_of_the_keys():
    model = build("timm")
    tower = find_tower(model)
    parts = TowerBlock(tower.blocks[0], tower.family)
    parts.attach()
    with torch.no_grad():
        parts.attend(torch.randn(1, 5, 48), None)
    assert torch.allclose(parts.keys().mean(-1), torch.zeros(1, 5, 3), atol=1e-5)  # layer-normed heads


def test_unknown_towers_are_refused_by_name():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, 2)])

    with pytest.raises(NothingMatchedError, match=r"hold TransformerEncoderLayer.*ViTLayer"):
        reduce_tokens(Odd(), Merge(removed=(1,)))


def test_attention_with_positions_is_refused():
    model = build("timm")
    model.blocks[1].attn.relative_position_bias_table = nn.Parameter(torch.zeros(3))
    with pytest.raises(InputError, match="positions are lost"):
        find_tower(model)


def test_a_block_that_does_more_than_its_family_says_is_found_out():
    model = build("timm")

    class Surprising(type(model.blocks[2])):
        def forward(self, x, attn_mask=None):
            return super().forward(x, attn_mask) * 1.5

    block = Surprising().eval()
    model.blocks[2] = block
    with pytest.raises(InputError, match="with nothing reduced the output differs"):
        reduce_tokens(model, Merge(removed=(2,) * 4), example=IMAGES)
    assert "forward" not in model.blocks[0].__dict__


def test_two_towers_must_be_told_apart():
    both = nn.ModuleDict({"left": TimmStyleViT(), "right": TimmStyleViT()})
    with pytest.raises(InputError, match="2 towers"):
        find_tower(both)


@pytest.mark.parametrize(("name", "protected"), [("deit", 2), ("sound", 2), ("ijepa", 0)])
def test_towers_that_no_table_names_are_known_by_their_structure(name, protected):
    """Distillation tokens are protected with the class token; I-JEPA has neither."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    torch.manual_seed(0)
    model = {
        "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(**shape, image_size=64, patch_size=8)),
        "sound": lambda: transformers.ASTModel(transformers.ASTConfig(**shape, max_length=96, num_mel_bins=64)),
        "ijepa": lambda: transformers.IJepaModel(transformers.IJepaConfig(**shape, image_size=64, patch_size=8)),
    }[name]().eval()
    inputs = torch.randn(2, 96, 64) if name == "sound" else IMAGES
    with torch.no_grad():
        before = model(inputs)[0]
        patch = reduce_tokens(model, Merge(removed=(0,) * 4), example=inputs)  # bit for bit, or refused
        assert torch.equal(model(inputs)[0], before)
        assert patch.tower.protected == protected
        patch.remove()
        patch = reduce_tokens(model, Merge(removed=(6,) * 4))
        model(inputs)
    groups = patch.state.size[0]
    assert groups[:protected].tolist() == [1.0] * protected
    assert groups.sum() == before.shape[1]
    patch.remove()


def test_blocks_that_are_handed_positions_are_not_taken_by_structure():
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=64, patch_size=8
    )
    model = transformers.DINOv3ViTModel(config)
    for layer in model.model.layer:  # the same code under a name that no table knows
        layer.__class__ = type("TurningLayer", (type(layer),), {})
    with pytest.raises(NothingMatchedError, match="TurningLayer"):
        find_tower(model)
