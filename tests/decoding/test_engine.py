"""Decoding equals `generate` past every window and switch of a model, or the model is refused by name."""

from __future__ import annotations

import random
import warnings
from functools import partial

import pytest
import torch
import transformers

from lessen.decoding import Decoder, compare, probe
from lessen.decoding.attention import windowed
from lessen.decoding.engine import SingleEngine, choose_engine
from lessen.decoding.probe import limits_of, narrowed
from lessen.decoding.ragged import RaggedEngine
from lessen.decoding.switching import SwitchingEngine, switch_of
from lessen.errors import InputError
from tiny_models import FLAT, LONGROPE, built, llama, mistral, phi3_longrope, plain, repeating_prompt

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "mask-only window": partial(built, "Phimoe", sliding_window=16, **MOE),
    "mask-only window, Qwen2-MoE": partial(
        built, "Qwen2Moe", sliding_window=16, use_sliding_window=True, moe_intermediate_size=24,
        shared_expert_intermediate_size=24, num_experts=4, num_experts_per_tok=2,
    ),
    "window of some layers": partial(built, "Qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=1),
    "window and soft cap": partial(built, "Gemma2", sliding_window=16, head_dim=8, attn_logit_softcapping=1.0),
    "window and sinks": partial(built, "GptOss", sliding_window=16, head_dim=8, **MOE),
    "chunks": partial(
        built, "Llama4", attention_chunk_size=16, head_dim=8, num_local_experts=2, moe_layers=[], intermediate_size_mlp=48,
        num_hidden_layers=4,
    ),
    "longrope, keys made anew": phi3_longrope,
    "longrope, keys kept": partial(built, "Llama", rope_parameters=dict(LONGROPE)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_window_and_switch_is_crossed_as_generate_does(kind):
    """Alone, beside longer sequences, by prompt and by decoding."""
    model, rnd = FAMILIES[kind](), random.Random(0)
    decoder = Decoder(model, costs=FLAT, pack=False)
    assert decoder.engine.batched
    prompts = [repeating_prompt(rnd, longest) for longest in (8, 24, 24, 60)]
    want = [plain(model, prompt, 40) for prompt in prompts]
    assert [each.tokens for each in decoder.complete(prompts, max_new_tokens=40)] == want
    assert [decoder.complete([prompt], max_new_tokens=40)[0].tokens for prompt in prompts] == want
    assert decoder.report.drafted > 0


def test_own_attention_masks_run_one_at_a_time_past_their_window():
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=40,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.GPTNeoForCausalLM(config).eval()
    decoder = Decoder(model, costs=FLAT)
    assert not decoder.engine.batched
    prompt = [5, 6, 7] * 5
    assert decoder.complete([prompt], max_new_tokens=40, eos_token_id=None)[0].tokens == plain(
        model, prompt, 40, eos_token_id=None
    )


def test_the_probe_runs_past_windows_on_a_narrowed_view():
    model = FAMILIES["mask-only window"]()
    assert limits_of(model) == {"sliding_window": 16}
    view = narrowed(model, ["sliding_window"])
    assert view.config.sliding_window == 5
    assert model.config.sliding_window == 16
    ids = torch.tensor([list(range(2, 14))])
    with torch.inference_mode():
        assert not torch.allclose(view(ids).logits[0, -1], model(ids).logits[0, -1], atol=1e-4)


@pytest.mark.parametrize("kind", ["mask-only window", "longrope, keys made anew", "longrope, keys kept"])
def test_the_probe_refuses_an_engine_that_forgets_a_window_or_switch(kind, monkeypatch):
    """The engine is made to forget; without the probe it would decode other tokens."""
    model = FAMILIES[kind]()
    monkeypatch.setattr("lessen.decoding.ragged.rule_of", lambda *_: windowed(None))
    monkeypatch.setattr("lessen.decoding.engine.switch_of", lambda *_: None)
    monkeypatch.setattr(SingleEngine, "run", RaggedEngine.run)
    with pytest.raises(InputError, match="cannot be decoded exactly"):
        choose_engine(model)


def test_a_window_that_cannot_be_tried_is_refused(monkeypatch):
    """Where narrowing changes nothing and the window is too long to try, nobody knows whether decoding is exact."""
    model = mistral(window=100)
    monkeypatch.setattr(probe, "narrowed", lambda given, _names: given)
    monkeypatch.setattr(probe, "_LONGEST_PROBE", 50)
    with pytest.raises(InputError, match="MistralForCausalLM.*past sliding_window could not be reproduced"):
        Decoder(model, costs=FLAT)


def test_windows_beyond_the_context_and_unused_ones_need_no_probe():
    assert limits_of(llama()) == {}
    assert limits_of(mistral(window=500)) == {}
    assert limits_of(built("Qwen2", sliding_window=16, use_sliding_window=False)) == {}
    assert limits_of(built("Qwen3", sliding_window=16, head_dim=8, layer_types=["full_attention"] * 2)) == {}


def test_each_window_and_switch_is_tried_by_itself(monkeypatch):
    """A model with two of them: one whose narrowing shows does not stand for the other."""
    model = built("Phi3", rope_parameters=dict(LONGROPE), original_max_position_embeddings=24, sliding_window=30)
    assert set(limits_of(model)) == {"sliding_window", "original_max_position_embeddings"}
    prompt = [5, 6, 7] * 6
    assert Decoder(model, costs=FLAT).complete([prompt], max_new_tokens=40)[0].tokens == plain(model, prompt, 40)
    narrow = probe.narrowed
    monkeypatch.setattr(probe, "narrowed", lambda given, names: narrow(given, set(names) - {"sliding_window"}))
    monkeypatch.setattr(probe, "_LONGEST_PROBE", 20)
    with pytest.raises(InputError, match="could not be reproduced"):
        Decoder(model, costs=FLAT)


def test_a_switch_is_read_from_the_model_and_its_class():
    phi, other = phi3_longrope(), FAMILIES["longrope, keys kept"]()
    assert (switch_of(phi, 256).place, switch_of(phi, 256).recompute) == (24, True)
    assert (switch_of(other, 256).place, switch_of(other, 256).recompute) == (24, False)
    assert switch_of(phi, 24) is None
    assert switch_of(llama(), 128) is None


def test_a_pass_stays_on_one_side_of_the_switch():
    model = phi3_longrope()
    engine = choose_engine(model)
    assert isinstance(engine, SwitchingEngine)
    cache = engine.new_cache()
    assert engine.reach(cache) is None
    engine.run([(cache, list(range(2, 24)))])
    assert (cache.length, engine.reach(cache)) == (22, 2)
    engine.run([(cache, [5, 6])])
    assert engine.reach(cache) is None
    engine.run([(cache, [7, 8, 9])])
    assert cache.length == cache.inner.length == 27


def test_frequencies_that_change_at_every_position_are_refused_within_the_context():
    scaled = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = built("Llama", rope_parameters=scaled)
    Decoder(model, costs=FLAT, pack=False)  # they change beyond the context only, where decoding has stopped
    for module in model.modules():
        if hasattr(module, "original_max_seq_len"):
            module.original_max_seq_len = 32
    with pytest.raises(InputError, match=r"from 32 on \(dynamic scaling\)"):
        Decoder(model, costs=FLAT, pack=False)


def test_a_short_sequence_is_not_changed_by_a_long_neighbour():
    model = phi3_longrope()
    decoder = Decoder(model, costs=FLAT)
    short, long = [5, 6, 7], [8, 9, 10, 11] * 12
    alone = decoder.complete([short], max_new_tokens=15)[0].tokens
    assert decoder.complete([short, long], max_new_tokens=15)[0].tokens == alone == plain(model, short, 15)


def test_rows_that_generate_would_switch_with_a_longer_one_are_said():
    model = phi3_longrope()
    decoder = Decoder(model, costs=FLAT)
    rows, new = [[5, 6, 7], [8, 9, 10, 11] * 3], 15  # the longer row crosses position 24, the shorter does not
    ids = torch.tensor([[0] * 9 + rows[0], rows[1]])
    given = {"attention_mask": (ids != 0).long(), "max_new_tokens": new}
    with pytest.warns(UserWarning, match="model.generate would change all rows with the longest"):
        out = decoder.generate(ids, **given)
    assert out[:, 12:].tolist() == [plain(model, row, new) for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(
            decoder.generate(ids, **given | {"max_new_tokens": 12}),
            model.generate(ids, **given | {"max_new_tokens": 12}),
        )
        decoder.generate(ids[1:].repeat(2, 1), max_new_tokens=new)
    compare(decoder, rows, max_new_tokens=new)
    found = decoder.report.comparison
    assert (found.identical, found.together) == (2, False)


def test_padding_that_is_numbered_like_tokens_is_refused_and_compared_alone():
    shape = {"d_model": 32, "decoder_ffn_dim": 48, "decoder_layers": 2, "decoder_attention_heads": 4, "init_std": 0.3}
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=40, max_position_embeddings=64, is_decoder=True, is_encoder_decoder=False, bos_token_id=0,
        pad_token_id=1, eos_token_id=2, **shape,
    )  # fmt: skip
    model = transformers.BartForCausalLM(config).eval()
    decoder, rows = Decoder(model, costs=FLAT), [[5, 6, 7], [8, 9, 10, 11] * 3]
    ids = torch.tensor([[1] * 9 + rows[0], rows[1]])
    with pytest.raises(InputError, match="BartForCausalLM numbers padding like tokens"):
        decoder.generate(ids, attention_mask=(ids != 1).long(), max_new_tokens=5)
    assert torch.equal(decoder.generate(ids[1:], max_new_tokens=5), model.generate(ids[1:], max_new_tokens=5))
    compare(decoder, rows, max_new_tokens=12)
    found = decoder.report.comparison
    assert (found.identical, found.together) == (2, False)
    assert not Decoder(llama(), costs=FLAT).counts_padding()


def test_a_model_whose_forward_fails_is_refused_by_name():
    model = llama()
    model.model.forward = lambda **_: (_ for _ in ()).throw(RuntimeError("no kernel for this shape"))
    with pytest.raises(InputError, match="LlamaForCausalLM cannot be decoded exactly.*no kernel for this shape"):
        Decoder(model, costs=FLAT)
