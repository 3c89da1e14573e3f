from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lessen.errors import InputError
from lessen.tasks.vision.vit import PlainViT, ViTOptions


def test_shapes_and_sizes():
    model = PlainViT().eval()
    assert model.grid == (8, 8)
    assert model.embed(torch.randn(2, 3, 32, 32)).shape == (2, 65, 192)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert 1_500_000 < sum(p.numel() for p in model.parameters()) < 2_500_000


def test_a_plain_patch_stem_is_the_linear_map_of_patches():
    model = PlainViT(image_size=8, patch_size=4, width=16, depth=1, heads=2, stem=()).eval()
    image = torch.randn(1, 3, 8, 8)
    patch = image[:, :, 4:8, 0:4].reshape(1, -1)  # row 1, column 0: token 3 with the class token
    conv = model.stem[0]
    wanted = patch @ conv.weight.reshape(16, -1).t() + conv.bias + model.position[:, 3]
    assert torch.allclose(model.embed(image)[:, 3], wanted, atol=1e-5)


def test_attention_is_softmax_attention_with_its_bias_on_keys():
    attention = PlainViT(width=16, depth=1, heads=2).blocks[0].attn
    x, bias = torch.randn(1, 5, 16), torch.rand(1, 1, 1, 5)
    out, query, key = attention.attend(x, bias)
    q, k, v = (p(x).view(1, 5, 2, 8).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    weight = (q @ k.transpose(-1, -2) / 8**0.5 + bias).softmax(-1)
    assert torch.allclose(out, attention.out_proj((weight @ v).transpose(1, 2).flatten(2)), atol=1e-6)
    assert torch.equal(query, attention.q_proj(x))
    assert torch.equal(key, attention.k_proj(x))


def test_bad_shapes():
    with pytest.raises(InputError, match=r"takes images \[batch, 3, 32, 32\], found \[1, 3, 224, 224\]"):
        PlainViT()(torch.zeros(1, 3, 224, 224))
    with pytest.raises(ValidationError, match="no multiple of patch_size"):
        ViTOptions(image_size=30)
    with pytest.raises(ValidationError, match="no multiple of heads"):
        ViTOptions(width=100, heads=3)
    with pytest.raises(ValidationError, match="cannot reach patch_size 6"):
        ViTOptions(image_size=36, patch_size=6)
