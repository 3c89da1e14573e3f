from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from torch import nn

from lessen.decoding import CostCurve, Decoder, packing
from lessen.decoding.packing import PackedLinear, Packing
from tiny_models import FLAT, llama, plain

needs_onednn = pytest.mark.skipif(not packing._available(), reason="this torch has no oneDNN linear layers")


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(packing, "rows_that_pay", lambda _: (1, 64))


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
    monkeypatch.setattr(packing, "rows_that_pay", lambda _: (0, 0))
    model = llama()
    with Decoder(model, costs=FLAT) as decoder:
        assert decoder.packing.extra_bytes == 0
        assert type(model.lm_head) is nn.Linear
    assert Decoder(model, costs=FLAT, pack=False).packing is None


@needs_onednn
@pytest.mark.parametrize(("ratio", "noise", "pays"), [(0.5, 0.15, True), (1.0, 0.15, False), (0.97, 0.15, False)])
def test_packing_needs_an_interval_below_the_bar(monkeypatch, ratio, noise, pays):
    """A gain that noise could have made is none: near the bar the answer is always no."""
    verdicts = set()
    for seed in range(12):
        rnd = random.Random(seed)

        def ratios(_one, _other, pairs, rnd=rnd):
            return [ratio * math.exp(rnd.gauss(0.0, noise)) for _ in range(pairs)]

        monkeypatch.setattr(packing, "paired_ratios", ratios)
        verdicts.add(packing.rows_that_pay([nn.Linear(8, 8)]))
    assert verdicts == {(1, 64) if pays else (0, 0)}


@needs_onednn
@pytest.mark.parametrize(
    ("paying", "rows"),
    [((4, 8, 16), (4, 16)), ((1, 4, 8), (4, 8)), ((1, 2, 4, 8, 16, 64), (1, 64)), ((1, 2), (0, 0)), ((8, 64), (8, 8))],
)
def test_packed_weights_serve_the_numbers_of_rows_around_eight_that_gain(monkeypatch, paying, rows):
    tried = iter(packing._TRIED_ROWS)
    monkeypatch.setattr(
        packing, "paired_ratios", lambda _one, _other, pairs: [0.5 if next(tried) in paying else 1.1] * pairs
    )
    assert packing.rows_that_pay([nn.Linear(8, 8)]) == rows


@needs_onednn
def test_other_numbers_of_rows_run_on_the_stock_product():
    linear = nn.Linear(8, 8)
    layer = PackedLinear(linear, (4, 16))
    layer.packed = PackedLinear(
        nn.Linear(8, 8)
    ).packed  # another weight, so that the packed product is known by its result
    with torch.inference_mode():
        for rows in (1, 3, 4, 16, 17):
            inputs = torch.ones(1, rows, 8)
            assert torch.allclose(layer(inputs), linear(inputs), atol=1e-6) is not (4 <= rows <= 16)


def test_pairs_take_turns_and_give_the_first_over_the_second(monkeypatch):
    now, order = [0.0], []

    def spend(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    monkeypatch.setattr(packing.time, "perf_counter", lambda: now[0])
    assert packing.paired_ratios(spend("a", 1.0), spend("b", 4.0), 3) == pytest.approx([0.25] * 3)
    assert order[2:] == ["a", "b", "b", "a", "a", "b"]


def test_the_interval_of_the_median_covers_it():
    rnd, covered = random.Random(0), 0
    for _ in range(2000):
        low, high = packing.median_interval([rnd.expovariate(1.0) for _ in range(15)])
        covered += low <= math.log(2.0) <= high
    assert 0.95 <= covered / 2000 <= 0.98
    assert packing.median_interval([3.0, 1.0]) == (1.0, 3.0)


@needs_onednn
def test_a_model_can_move_and_be_copied_while_a_packed_decoder_is_open(always):
    model = llama()
    modules = dict(model.named_modules())
    with Decoder(model, costs=FLAT) as decoder:
        decoder.complete([[5, 6, 7] * 4], max_new_tokens=4)
        assert dict(model.named_modules()) == modules
        copied = copy.deepcopy(model)
        assert plain(copied, [5, 6, 7], 8) == plain(model, [5, 6, 7], 8)
        model.to(torch.bfloat16)
        assert decoder.complete([[5, 6, 7] * 4], max_new_tokens=4)
        assert decoder.report.dtype == "bfloat16"
        assert decoder.packing.extra_bytes == 0  # bfloat16 layers are not packed


@needs_onednn
def test_weights_that_change_are_packed_again(always):
    model, prompt = llama(), [5, 6, 7] * 4
    with Decoder(model, costs=FLAT) as decoder:
        before = decoder.complete([prompt], max_new_tokens=12, eos_token_id=None)[0].tokens
        with torch.no_grad():
            model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
        after = decoder.complete([prompt], max_new_tokens=12, eos_token_id=None)[0].tokens
        assert after == plain(model, prompt, 12, eos_token_id=None) != before


@needs_onednn
def test_a_curve_says_whether_weights_were_packed_and_decides(monkeypatch):
    monkeypatch.setattr(packing, "rows_that_pay", lambda _: pytest.fail("decided already"))
    for rows in ((4, 64), (0, 0)):
        decoder = Decoder(llama(), costs=CostCurve((1, 8), (1.0, 2.0), rows))
        assert (decoder.packing.extra_bytes > 0) is (rows != (0, 0))
        assert decoder.packing.rows == rows
    monkeypatch.setattr(packing, "rows_that_pay", lambda _: (0, 0))
    assert Decoder(llama()).costs.packed_rows == (0, 0)
