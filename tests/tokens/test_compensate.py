from __future__ import annotations

import pytest
import torch

from lessen.errors import InputError
from lessen.tasks.vision.vit import PlainViT
from lessen.tokens.compensate import Compensator
from towers import TimmStyleViT

IMAGES = torch.randn(2, 3, 16, 16)


def tower():
    torch.manual_seed(0)
    return PlainViT(image_size=16, patch_size=4, width=32, depth=3, heads=2, stem=()).eval()


def trained(model):
    plug_in = Compensator(model, largest=8, rank=2).eval()
    for branch in plug_in.branches:
        torch.nn.init.normal_(branch.up.weight)
    return plug_in


def corrected(model, plug_in, source, target, scale=0.1):
    with torch.no_grad(), plug_in.active(source, target, scale):
        return model(IMAGES)


def test_a_fresh_plug_in_and_equal_rates_change_nothing():
    model = tower()
    with torch.no_grad():
        plain = model(IMAGES)
    assert torch.equal(corrected(model, Compensator(model, largest=8), 0, 8), plain)
    assert torch.equal(corrected(model, trained(model), 5, 5), plain)
    assert not torch.allclose(corrected(model, trained(model), 0, 8), plain)


def test_gaps_add_up_and_change_sign():
    plug_in = Compensator(tower(), largest=8, rank=3)
    mu = plug_in.coefficients
    assert torch.equal(mu(2, 7), -mu(7, 2))
    assert torch.equal(mu(1, 4) + mu(4, 6), mu(1, 6))
    assert mu(2, 5).abs().sum() == 3 * 3
    assert mu(0, 1).nonzero().flatten().tolist() == [21, 22, 23]  # the last coordinates come first
    for source, target in ((1, 4), (7, 2)):
        matrix = trained(tower())._pieces[0].matrix(trained(tower()).coefficients(source, target))
        assert torch.linalg.matrix_rank(matrix.detach()) <= 2 * abs(target - source)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("source", "target"), [(0, 8), (6, 1)])
def test_folding_is_exact(source, target, fused):
    model = TimmStyleViT("token").eval() if fused else tower()
    plug_in = trained(model)
    wanted = corrected(model, plug_in, source, target)
    plug_in.fold(source, target, 0.1)
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), wanted, atol=1e-5)


def test_keys_of_a_fused_projection_stay_as_they_are():
    model = TimmStyleViT("token").eval()
    layer = model.blocks[0].attn.qkv
    before, width = layer.weight.clone(), layer.out_features // 3
    trained(model).fold(0, 8, 0.1)
    changed = (layer.weight != before).any(1)
    assert not bool(changed[width : 2 * width].any())
    assert bool(changed[:width].all())
    assert bool(changed[2 * width :].all())


def test_size_is_the_closed_form():
    plug_in = Compensator(tower(), largest=8, rank=2)
    assert sum(p.numel() for p in plug_in.parameters()) == 3 * 2 * 2 * 32 * 16


def test_rates_outside_what_was_distilled_are_refused():
    with pytest.raises(InputError, match=r"9 is outside 0\.\.8"):
        Compensator(tower(), largest=8).coefficients(0, 9)
