from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from lessen.decoding import Decoder
from lessen.decoding.compare import compare
from lessen.decoding.kv_stored import KeyValueCodes, PrefixStates, detach
from lessen.decoding.prefix import prefix_of_model
from lessen.errors import InputError
from tiny_models import FLAT, bloom, built, gpt2, llama, mistral, phi3_longrope, plain

FAMILIES = {
    "llama": llama,
    "mistral, sliding": lambda: mistral(20),
    "gpt2": gpt2,
    "qwen2": lambda: built("Qwen2"),
    "gemma3": lambda: built("Gemma3", sliding_window=20, head_dim=8),
    "bloom": bloom,
}
PROMPT = [3, 5, 7, 9, 11, 9, 11, 13, 9, 11]
PREFIX = PROMPT[:3]


def made(family):
    model = FAMILIES[family]()
    model.generation_config.eos_token_id = None
    return model


def with_prefix(model, ids=PREFIX):
    patched = copy.deepcopy(model)
    PrefixStates.of(prefix_of_model(model, ids)).attach(patched)
    return patched


def with_codes(model, bits=4, **options):
    patched = copy.deepcopy(model)
    KeyValueCodes(bits, **{"group": 4, "residual": 6, "first": 2} | options).attach(patched)
    return patched


def texts(rows=2, length=40, first=PREFIX, seed=0):
    ids = torch.randint(2, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, : len(first)] = torch.tensor(first)
    return ids


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_prefix_of_the_model_itself_changes_nothing(family):
    model = made(family)
    patched, ids = with_prefix(model), texts()
    exact = model(ids).logits
    assert torch.allclose(patched(ids).logits, exact, atol=1e-4)
    assert torch.allclose(patched(ids, logits_to_keep=1).logits, exact[:, -1:], atol=1e-4)
    assert torch.allclose(patched(ids[:, :3]).logits, exact[:, :3], atol=1e-4)  # the prefix alone
    options = {"max_new_tokens": 24, "do_sample": False}
    assert torch.equal(patched.generate(ids[:1, :10], **options), model.generate(ids[:1, :10], **options))
    (done,) = Decoder(patched, costs=FLAT).complete([PROMPT], max_new_tokens=24)
    assert done.tokens == plain(model, PROMPT, 24)
    detach(patched)
    assert torch.equal(patched(ids).logits, exact)


@pytest.mark.parametrize(("family", "bits"), [*((family, 2) for family in FAMILIES), ("llama", 8)])
@torch.no_grad()
def test_codes_are_the_same_through_transformers_and_through_our_engines_with_copying(family, bits):
    """Drafts stop where held states turn into codes, so that copying stays exact to plain decoding in codes."""
    model = made(family)
    patched = with_codes(model, bits)
    wanted = plain(patched, PROMPT, 40)
    decoder = Decoder(patched, costs=FLAT)
    done = compare(decoder, [PROMPT, PROMPT[:7]], max_new_tokens=40, do_sample=False)
    assert done[0].tokens == wanted
    assert decoder.report.comparison.identical == 2
    if family == "llama":
        assert decoder.report.drafted > 0
        assert bits == 8 or wanted != plain(model, PROMPT, 40)  # two bits are heard


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_reading_in_pieces_comes_near_the_exact_cache_with_more_bits(family):
    model, ids = made(family), texts(1, 60)
    exact = model(ids).logits
    errors = []
    for bits in (16, 8, 4, 2):
        patched, cache, parts = with_codes(model, bits, residual=2), None, []
        for start in range(0, 60, 10):
            output = patched(ids[:, start : start + 10], cache=cache, use_cache=True)
            cache, parts = output["cache"], [*parts, output.logits]
        errors.append(float((torch.cat(parts, 1) - exact).abs().mean()))
    assert errors[0] < 1e-4
    assert errors[0] < errors[1] < errors[2] < errors[3]


@torch.no_grad()
def test_sixteen_bits_and_a_removed_patch_are_identical_bit_for_bit():
    model, ids = llama(), texts()
    patched = with_codes(model, 16)
    output, own = (each(ids, use_cache=True) for each in (patched, model))
    assert torch.equal(output.logits, own.logits)
    assert type(output["cache"].layers[0]) is type(own["cache"].layers[0])
    detach(patched)
    assert "forward" not in vars(patched)
    assert not {"key_value_codes", "prefix_states"} & set(dict(patched.named_children()))
    assert torch.equal(patched(ids).logits, own.logits)


@torch.no_grad()
def test_both_patches_hold_the_prefix_exactly_under_two_bits():
    model = llama()
    patched = with_codes(with_prefix(model), 2, residual=0, first=0)
    cache = patched(texts(), use_cache=True)["cache"]
    for layer, (keys, values) in zip(cache.layers, prefix_of_model(model, PREFIX).layers, strict=True):
        for row in range(2):
            assert torch.equal(layer.states.read()[0][row, :, :3], keys)
            assert torch.equal(layer.states.read()[1][row, :, :3], values)
    (done,) = Decoder(patched, costs=FLAT).complete([PROMPT], max_new_tokens=30)
    assert done.tokens == plain(patched, PROMPT, 30)


def test_the_prefix_is_what_the_model_holds_itself_bit_for_bit():
    model = llama()
    with torch.no_grad():
        cache = model(torch.tensor([PREFIX]), use_cache=True)["cache"]
    for layer, (keys, values) in zip(cache.layers, prefix_of_model(model, PREFIX).layers, strict=True):
        assert torch.equal(layer.keys[0], keys)
        assert torch.equal(layer.values[0], values)


@torch.no_grad()
def test_losses_tuples_and_beams_go_through():
    model, ids = llama(), texts()
    patched = with_prefix(model)
    assert torch.allclose(patched(ids, labels=ids).loss, model(ids, labels=ids).loss, atol=1e-5)
    assert torch.allclose(patched(ids, return_dict=False)[0], model(ids).logits, atol=1e-4)
    assert "cache" not in patched(ids, use_cache=False)
    beams = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(patched.generate(ids[:1, :8], **beams), model.generate(ids[:1, :8], **beams))
    both = with_codes(patched, 8)
    assert both.generate(ids[:1, :8], **beams).shape == (1, 16)
    looked_up = both.generate(ids[:1, :8], prompt_lookup_num_tokens=3, max_new_tokens=8, do_sample=False)
    assert looked_up.shape == (1, 16)  # crops the cache


def test_a_copied_model_stays_patched_on_its_own():
    model = with_prefix(llama())
    twin = copy.deepcopy(model)
    detach(model)
    with pytest.raises(InputError, match="starts with the tokens"):
        twin(texts(first=[8, 8, 8]))
    model(texts(first=[8, 8, 8]))


# -- what is refused, in one line --------------------------------------------------------------------------------
def refused(match, call, *arguments, **options):
    with pytest.raises(InputError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_other_first_tokens_are_refused_everywhere():
    patched, other = with_prefix(llama()), [3, 5, 8, 9, 10]
    ids = torch.tensor([other])
    refused("starts with the tokens .3, 5, 8., and .* start with .3, 5, 7", patched, ids)
    refused("starts with the tokens", patched.generate, ids, max_new_tokens=4)
    refused("starts with the tokens", Decoder(patched, costs=FLAT).complete, [other], max_new_tokens=4)
    refused("starts with the tokens", patched, ids[:, :2])  # shorter than the prefix
    refused("takes no embeddings", patched, inputs_embeds=torch.zeros(1, 4, 32))
    refused("takes no hidden states", patched, torch.tensor([PROMPT]), output_hidden_states=True)


def test_padding_in_front_of_a_prefix_is_refused_and_padding_behind_is_not():
    patched, ids = with_prefix(llama()), texts()
    mask = torch.ones_like(ids)
    mask[1, 0] = 0
    refused("row 1 is padded in front", patched, ids, attention_mask=mask)
    refused("row 1 is padded in front", patched.generate, ids, attention_mask=mask, max_new_tokens=3)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    with torch.no_grad():
        wanted = llama()(ids, attention_mask=mask).logits
        assert torch.allclose(patched(ids, attention_mask=mask).logits[:, :30], wanted[:, :30], atol=1e-4)


def test_a_prefix_that_context_or_window_cannot_hold_is_refused():
    model = mistral(6)
    refused("a window of 6.*at most 5", prefix_of_model, model, [3] * 6)
    assert torch.isfinite(with_prefix(model, [3] * 5)(texts(first=[3] * 5)).logits).all()
    refused("the context of LlamaForCausalLM is 128", prefix_of_model, llama(), [3] * 128)
    refused("prefix is empty", prefix_of_model, llama(), [])
    refused("token 99, and the model has 40 rows", prefix_of_model, llama(), [99])
    refused("the model's context is 128", Decoder(with_prefix(llama()), costs=FLAT).complete, [PREFIX + [4] * 130])
    refused("frequencies at position 24", Decoder, with_prefix(phi3_longrope()), costs=FLAT)


def test_models_whose_cache_is_not_known_are_named():
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)
    mamba = transformers.MambaForCausalLM(config).eval()
    refused("MambaForCausalLM", KeyValueCodes().attach, mamba)
    refused("Sequential is no Hugging Face language model", KeyValueCodes().attach, nn.Sequential(nn.Linear(2, 2)))
    t5 = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    refused("encoder-decoder", KeyValueCodes().attach, transformers.T5ForConditionalGeneration(t5).eval())


def test_patches_that_do_not_fit_or_are_there_already_are_refused():
    model = llama()
    states = PrefixStates.of(prefix_of_model(llama(vocab=50), PREFIX))
    refused("belongs to another model", states.attach, model)
    patched = with_codes(model)
    refused("key-value-codes already", KeyValueCodes().attach, patched)
    cache = transformers.StaticCache(config=model.config, max_cache_len=64)
    refused("a cache of StaticLayer", patched, torch.tensor([PROMPT]), cache=cache, use_cache=True)
    model.forward = lambda *_, **__: None
    refused("something else has replaced the forward", KeyValueCodes().attach, model)


@pytest.mark.parametrize("wrong", [{"bits": 3}, {"group": 0}, {"residual": -1}, {"first": 1.5}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        KeyValueCodes(**wrong)


@pytest.mark.parametrize("layers", [[], [[2, 8]], [[0, 8, 8]], "x", [[2, 8, 2**40]]])
def test_a_prefix_of_no_shape_is_refused(layers):
    with pytest.raises((ValueError, TypeError)):
        PrefixStates(3, 40, layers)
