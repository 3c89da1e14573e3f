"""The screened head's token is the exact one: against float64, over planted near ties, and in decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from lessen.decoding import Decoder, screened_head
from lessen.decoding.screened_head import Screen, ScreenedHead, products_are_exact, screened
from tiny_language import language_model

pytestmark = pytest.mark.skipif(not products_are_exact(), reason="this processor's integer products saturate")


def exact(weight, hidden, bias=None):
    logits = torch.stack([(weight.double() * one.double()).sum(1) for one in hidden])
    return (logits if bias is None else logits + bias.double()).argmax(1)


@given(
    seed=st.integers(0, 999), rows=st.integers(1, 300), width=st.integers(1, 96), count=st.integers(1, 6),
    power=st.integers(-20, 20), spike=st.floats(0, 1e4), sixteen=st.booleans(), biased=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_the_best_row_is_that_of_float64(seed, rows, width, count, power, spike, sixteen, biased):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) * 2.0**power
    weight = weight.bfloat16().float() if sixteen else weight
    weight[torch.rand(rows, generator=generator) < 0.1] = 0.0
    hidden = torch.randn(count, width, generator=generator)
    hidden[:, 0] += spike
    bias = torch.randn(rows, generator=generator) * 2.0**power if biased else None
    found = Screen(weight).find(hidden, bias)
    assert torch.equal(found.best, exact(weight, hidden, bias))
    assert torch.equal(found.logits.argmax(1), found.best)


def test_near_ties_are_told_apart_and_equal_rows_go_to_the_first():
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(500, 64, generator=generator), torch.randn(40, 64, generator=generator)
    weight[100:200] = weight[300] + 1e-6 * torch.randn(100, 64, generator=generator)
    weight[400] = weight[350] = hidden[0] * 3
    found = [Screen(weight).find(row[None]) for row in hidden]
    assert [int(one.best) for one in found] == exact(weight, hidden).tolist()
    assert int(found[0].best) == 350


def test_few_rows_are_read_exactly():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20_000, 256, generator=generator)
    hidden = weight[[5, 77]] + 0.5 * torch.randn(2, 256, generator=generator)
    screen = Screen(weight)
    assert screen.bytes == weight.numel() + 3 * 4 * len(weight)
    assert screen.find(hidden).rescored < 20


def test_outside_of_greedy_choice_the_head_is_the_layer():
    layer = nn.Linear(32, 200)
    head, inputs = ScreenedHead(layer, Screen(layer.weight)), torch.randn(1, 3, 32)
    with torch.no_grad():
        assert torch.equal(head(inputs), layer(inputs))
        with screened():
            chosen = head(inputs)
            assert torch.equal(head(torch.randn(1, 9, 32).fill_(1.0)), layer(torch.ones(1, 9, 32)))
            assert head(inputs * torch.nan).isnan().all()
    assert torch.equal(chosen.argmax(-1), layer(inputs).argmax(-1))
    assert not torch.equal(chosen, layer(inputs))


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"do_sample": True, "seed": 3, "top_k": 8}])
def test_decoding_gives_the_same_tokens(options, monkeypatch):
    calls = []
    monkeypatch.setattr(screened_head, "SMALLEST", 1)
    monkeypatch.setattr(screened_head, "WORTHWHILE", float("inf"))
    find = Screen.find
    monkeypatch.setattr(Screen, "find", lambda *given: calls.append(1) or find(*given))
    model = language_model()
    plain, quick = Decoder(model, pack=False), Decoder(model, pack=False, screen=True)
    calls.clear()
    prompts = [[5, 9, 5, 9, 5], [7, 8, 30]]
    wanted = plain.complete(prompts, max_new_tokens=24, **options)
    assert not calls
    assert quick.complete(prompts, max_new_tokens=24, **options) == wanted
    assert bool(calls) == (not options)
    quick.close()
    assert isinstance(quick.engine.view.lm_head, nn.Linear)
