"""Compiled attention to blocks of codes: against softmax over the decoded states, and against the other engines."""

import pytest
import torch

from lessen.decoding.compiled import attention
from lessen.decoding.compiled.cache import CodedCache
from lessen.decoding.compiled.codes import Records, codes_for
from lessen.decoding.compiled.engine import CompiledEngine
from lessen.decoding.compiled.layout import Heads
from lessen.decoding.compiled.program import Program, kernel
from lessen.decoding.decoder import Decoder
from lessen.decoding.engine import choose_engine
from lessen.decoding.kv_codes import Form, encode_keys, encode_values, run_of
from lessen.decoding.kv_engine import KeptEngine
from lessen.decoding.kv_states import States, held_bytes
from lessen.decoding.kv_stored import KeyValueCodes
from lessen.decoding.straight import StraightEngine
from lessen.errors import InputError
from lessen.stored.kernels import machine
from packed_llama import near, packed, tokens

pytestmark = pytest.mark.skipif(not machine.available(), reason="needs llvmlite and torch on GNU OpenMP")

WIDE = {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1}
FORMS = [Form(8, 32, 40), Form(4, 32, 40), Form(2, 32, 40), Form(8, 16, 0), Form(4, 64, 8)]


@pytest.mark.parametrize("form", FORMS)
def test_records_hold_what_the_codes_say(form):
    keys, values = torch.randn(2, 3, 5, form.group, 64).unbind()
    codes = codes_for(form, Heads(6, 3, 64, 1.0))
    records = Records(codes).encoded(keys, values)
    assert records.shape == (3, 5, codes.bytes)
    found = Records(codes).decoded(records)
    run = run_of(64, form.group)
    for coded, states in zip((encode_keys(keys, form.bits), encode_values(values, form.bits, run)), found, strict=True):
        out = torch.empty_like(states)
        coded.decode(out)
        assert torch.equal(out, states)
    numbers = 2 * form.group * 64 * form.bits // 8 + 2 * 2 * 64 + 2 * 2 * form.group * 64 // run
    assert numbers <= codes.bytes < numbers + 64


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", [1, 3, 8])
def test_attention_is_softmax_over_decoded_states(form, group):
    heads, exact, count = Heads(2 * group, 2, 64, 64**-0.5), 4, 4 + 3 * form.group + form.residual + 5
    cache = CodedCache(2, heads, form, exact)
    states = torch.randn(2, 2, 2, count, 64) * 2
    for layer, (keys, values) in enumerate(states):
        cache.write(layer, keys, values)
    cache.added(count)
    assert (cache.length, cache.blocks) == (count, 3)
    queries = torch.randn(2, heads.queries * 64)
    for layer, (keys, values) in enumerate(states):
        plain = States(form, exact)
        plain.add(keys, values)
        plain.settle()
        held, out = plain.read(), torch.empty(2, heads.queries * 64)
        places = cache.places(1).repeat(2, 1)
        places[:, 1] -= torch.tensor([1, 3])  # the row is there already, and another before it
        program = Program()
        arguments = [program.at, places.data_ptr(), queries.data_ptr(), heads.queries * 64, layer, out.data_ptr()]
        program.add(kernel(attention.attend(heads, codes_for(form, heads)), True), arguments)
        program.run(2, 1)
        for row, short in enumerate((0, 2)):
            own = queries[row].view(2, group, 64)
            weights = torch.softmax(own @ held[0][:, : count - short].transpose(1, 2) * heads.scale, -1)
            expected = (weights @ held[1][:, : count - short]).flatten()
            assert torch.allclose(out[row], expected, rtol=1e-4, atol=2e-5)


def test_memory_is_that_of_the_codes_and_of_the_newest():
    form, states = Form(8, 32, 128), torch.randn(2, 2, 3000, 64)
    cache, plain = CodedCache(1, Heads(6, 2, 64, 1.0), form, 4), States(form, 4)
    cache.write(0, *states)
    cache.added(3000)
    plain.add(*states)
    plain.settle()
    assert held_bytes(cache) < 1.3 * held_bytes(plain)
    for length in (2000, 150, 2):
        cache.cut(length)
        plain.cut(length)
        assert cache.length == plain.length == length
        assert torch.equal(cache.states[0, :, :, cache.held - 1], torch.stack([side[:, -1] for side in plain.read()]))


def kept(engine, form, first=4):
    return KeptEngine(engine, KeyValueCodes(form.bits, form.group, form.residual, first), None, 2)


@pytest.fixture(scope="module")
def llama():
    return packed(**WIDE)


def test_logits_are_those_of_the_straight_engine(llama):
    ids, form = tokens(150), FORMS[0]
    found, caches = {}, {}
    for kind in (CompiledEngine, StraightEngine):
        engine = kept(kind(llama), form)
        caches[kind] = cache = engine.new_cache()
        parts = [engine.run([(cache, ids[:100])])]
        for start in range(100, 150, 10):
            parts.append(engine.run([(cache, ids[start : start + 10])]))
        engine.cut(cache, 90)  # into a block
        parts.append(engine.run([(cache, ids[90:95])]))
        found[kind] = torch.cat(parts)
    assert near(found[CompiledEngine], found[StraightEngine])
    assert caches[CompiledEngine].reach() == caches[StraightEngine].reach()


def test_the_decoder_keeps_the_compiled_engine_and_copies_exactly():
    model = packed(**WIDE)
    KeyValueCodes(8, 32, 32, 4).attach(model)
    engine = choose_engine(model)
    assert (type(engine), type(engine.inner)) == (KeptEngine, CompiledEngine)
    prompt = [*tokens(60), *tokens(60)]
    with Decoder(model, pack=False) as decoder:
        with_drafts = decoder.complete([prompt, prompt[:17]], max_new_tokens=70)
        decoder.lengths = lambda candidates, *_: [0] * len(candidates)
        plainly = decoder.complete([prompt, prompt[:17]], max_new_tokens=70)
    assert [one.tokens for one in with_drafts] == [one.tokens for one in plainly]


def test_forms_that_are_not_read_are_refused(llama):
    engine = CompiledEngine(llama)
    for form in (Form(8, 24, 0), Form(4, 128, 0), Form(2, 16, 0)):
        with pytest.raises(InputError, match="compiled passes read no codes"):
            engine.keep_codes(form, 4)
    model = packed(**WIDE)
    KeyValueCodes(8, 24, 32, 4).attach(model)
    assert type(choose_engine(model).inner) is StraightEngine
