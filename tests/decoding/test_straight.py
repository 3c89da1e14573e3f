from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.decoding import Decoder, packing
from lessen.decoding.engine import choose_engine
from lessen.decoding.ragged import RaggedEngine
from lessen.decoding.straight import StraightEngine
from lessen.errors import InputError
from lessen.pruning.choice import Choice
from lessen.pruning.layout import read_layout
from lessen.pruning.slicing import carry_out
from tiny_models import FLAT, built, gpt2, llama, mistral, plain

MAKERS = {
    "Llama": llama,
    "Llama, tied, biased": lambda: llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "Mistral, window": mistral,
    "Qwen2, window of one layer": lambda: built(
        "Qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=1
    ),
    "Qwen3, norms of heads": lambda: built("Qwen3", head_dim=16),
    "Llama 3 rotation": lambda: llama(
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    ),
}


@pytest.mark.parametrize("name", MAKERS)
@torch.inference_mode()
def test_the_lines_give_the_logits_of_the_model(name):
    model = MAKERS[name]()
    engine = choose_engine(model)
    assert type(getattr(engine, "inner", engine)) is StraightEngine
    ids, other = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22]
    first, second = engine.new_cache(), engine.new_cache()
    got = [
        engine.run([(first, ids[:5]), (second, other[:1])]),
        engine.run([(second, other[1:]), (first, ids[5:6])]),
        engine.run([(first, ids[6:])], last_only=True),
    ]
    want, short = (model(torch.tensor([tokens])).logits[0] for tokens in (ids, other))
    assert (got[0] - torch.cat([want[:5], short[:1]])).abs().max() < 1e-4
    assert (got[1] - torch.cat([short[1:], want[5:6]])).abs().max() < 1e-4
    assert (got[2] - want[-1:]).abs().max() < 1e-4


@torch.inference_mode()
def test_blocks_of_widths_of_their_own_are_lines_too():
    model = llama(num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
    layout = read_layout(model)
    first, second = (layer.path for layer in layout.layers[:2])
    kept = Choice(
        {first: torch.tensor([True, False])}, {first: torch.arange(48) < 16, second: torch.arange(48) % 3 > 0}
    )
    made = carry_out(layout, kept, {})
    engine = choose_engine(made)
    assert type(getattr(engine, "inner", engine)) is StraightEngine
    ids = [3, 4, 5, 6, 7, 8, 9]
    cache = engine.new_cache()
    got = torch.cat([engine.run([(cache, ids[:4])]), engine.run([(cache, ids[4:])])])
    assert (got - made(torch.tensor([ids])).logits[0]).abs().max() < 1e-4


def watched(model):
    model.model.layers[1].register_forward_hook(lambda *_: None)
    return model


def replaced(model):
    model.model.layers[0].mlp.forward = model.model.layers[0].mlp.forward
    return model


def half(model):
    return model.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (gpt2, "not known"),
        (lambda: built("Gemma2", head_dim=8), "not known"),
        (lambda: half(llama()), "not float32"),
        (lambda: watched(llama()), "model.layers.1"),
        (lambda: replaced(llama()), "model.layers.0.mlp"),
    ],
)
def test_other_models_run_through_their_own_forward(make, words):
    model = make()
    with pytest.raises(InputError, match=words):
        StraightEngine(model)
    assert type(choose_engine(model)) is RaggedEngine


def test_a_block_of_another_class_is_not_taken_for_a_line():
    class LlamaDecoderLayer(nn.Module):
        """Has the name only."""

    model = llama()
    layer = model.model.layers[1]
    LlamaDecoderLayer.__module__ = "somewhere"
    other = LlamaDecoderLayer()
    for name, child in layer.named_children():
        setattr(other, name, child)
    model.model.layers[1] = other
    with pytest.raises(InputError, match="not known to be one line"):
        StraightEngine(model)


class Doubled(nn.Module):
    """A linear layer of another kind: what compression puts in a layer's place."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("halved", linear.weight.detach() / 2)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.halved) * 2


def test_layers_are_called_as_the_modules_they_are():
    model, calls = llama(), []
    model.model.layers[0].mlp.down_proj = Doubled(model.model.layers[0].mlp.down_proj)
    model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda *_: calls.append(1))
    decoder = Decoder(model, costs=FLAT)
    assert type(decoder.engine) is StraightEngine
    calls.clear()
    got = decoder.complete([[5, 6, 7] * 4], max_new_tokens=12, eos_token_id=None)[0].tokens
    assert len(calls) == decoder.report.passes + 1
    assert got == plain(model, [5, 6, 7] * 4, 12, eos_token_id=None)


@pytest.mark.skipif(not packing._available(), reason="this torch has no oneDNN linear layers")
def test_packed_layers_that_are_put_in_later_are_run(monkeypatch):
    monkeypatch.setattr(packing, "rows_that_pay", lambda _: (1, 64))
    ran = []
    forward = packing.PackedLinear.forward
    monkeypatch.setattr(packing.PackedLinear, "forward", lambda self, rows: (ran.append(1), forward(self, rows))[1])
    decoder = Decoder(llama(), costs=FLAT)
    decoder.complete([[5, 6, 7]], max_new_tokens=4)
    assert ran
    ran.clear()
    decoder.close()
    decoder.complete([[5, 6, 7]], max_new_tokens=4)
    assert not ran
