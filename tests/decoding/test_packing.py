from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.decoding import Decoder, packing
from lessen.decoding.packing import PackedLinear, Packing
from tiny_models import FLAT, llama

needs_onednn = pytest.mark.skipif(not packing._available(), reason="this torch has no oneDNN linear layers")


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(packing, "packing_pays", lambda _: True)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_the_packed_product_is_the_stock_product_up_to_rounding(bias, rows):
    linear = nn.Linear(70, 45, bias=bias)
    inputs = torch.randn(1, rows, 70)
    with torch.inference_mode():
        assert (PackedLinear(linear)(inputs) - linear(inputs)).abs().max() < 1e-5


@needs_onednn
def test_packing_keeps_names_and_tied_weights_and_can_be_undone(always):
    model = llama(tie_word_embeddings=True)
    before, modules = set(model.state_dict()), dict(model.named_modules())
    packed = Packing(model)
    packed.put_in()
    assert isinstance(model.lm_head, PackedLinear)
    assert set(model.state_dict()) == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    linears = [module for module in modules.values() if type(module) is nn.Linear]
    assert packed.extra_bytes == sum(4 * module.weight.numel() for module in linears)
    packed.take_out()
    assert dict(model.named_modules()) == modules


@needs_onednn
def test_packed_decoding_gives_the_same_tokens(always):
    model = llama()
    with Decoder(model, costs=FLAT) as decoder:
        assert decoder.packing.extra_bytes > 0
        packed = decoder.complete([[5, 6, 7] * 4, [9, 8]], max_new_tokens=16)
        decoder.use_packed_weights(False)
        assert [each.tokens for each in decoder.complete([[5, 6, 7] * 4, [9, 8]], max_new_tokens=16)] == [
            each.tokens for each in packed
        ]
        assert decoder.report.packed_bytes > 0
    assert type(model.lm_head) is nn.Linear


def test_layers_with_hooks_and_other_dtypes_are_left_alone(always):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).to(torch.bfloat16), nn.Linear(8, 8))
    model[0].register_forward_hook(lambda *_: None)
    packed = Packing(model)
    packed.put_in()
    assert type(model[0]) is nn.Linear
    assert type(model[1]) is nn.Linear
    assert packed.extra_bytes in (0, 4 * 64)


def test_nothing_is_packed_where_a_trial_shows_no_gain(monkeypatch):
    monkeypatch.setattr(packing, "packing_pays", lambda _: False)
    model = llama()
    with Decoder(model, costs=FLAT) as decoder:
        assert decoder.packing.extra_bytes == 0
        assert type(model.lm_head) is nn.Linear
    assert Decoder(model, costs=FLAT, pack=False).packing is None


@needs_onednn
def test_the_trial_compares_both_products(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(packing, "_seconds", lambda call, repeats=7: [1.0, 0.5][next(ticks) % 2])
    assert packing.packing_pays(nn.Linear(8, 8))
    monkeypatch.setattr(packing, "_seconds", lambda call, repeats=7: 1.0)
    assert not packing.packing_pays(nn.Linear(8, 8))
