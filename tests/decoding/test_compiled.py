"""Compiled passes against torch's operators, the model's own forward, and themselves."""

import ctypes

import pytest
import torch
from torch import nn

from lessen.decoding.compiled import attention, rows
from lessen.decoding.compiled.cache import ContiguousCache
from lessen.decoding.compiled.engine import CompiledEngine
from lessen.decoding.compiled.program import Program, kernel
from lessen.decoding.decoder import Decoder
from lessen.decoding.engine import choose_engine
from lessen.decoding.straight import StraightEngine
from lessen.errors import InputError
from lessen.method import Context
from lessen.stored.kernels import machine
from lessen.stored.linears.scaled_input import ScaledInput
from packed_llama import SHAPE, Named, near, packed, tokens, transformers

pytestmark = pytest.mark.skipif(not machine.available(), reason="needs llvmlite and torch on GNU OpenMP")


@pytest.fixture(scope="module")
def llama():
    return packed()


@pytest.mark.parametrize(
    ("kind", "activations"), [("Llama", "int8"), ("Llama", "float"), ("Qwen2", "int8"), ("Qwen3", "int8")]
)
def test_logits_are_those_of_the_forward(kind, activations):
    model = packed(kind, activations=activations)
    engine = CompiledEngine(model)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([tokens(70)])).logits[0]
    assert near(engine.run([(engine.new_cache(), tokens(70))]), expected)


def test_rows_do_not_depend_on_one_another(llama):
    engine, ids = CompiledEngine(llama), tokens(90)
    whole = engine.run([(engine.new_cache(), ids)])
    cache = engine.new_cache()
    parts = [engine.run([(cache, ids[:70])])]
    engine.run([(cache, [5, 6, 7])])  # drafts that are not taken
    engine.cut(cache, 70)
    parts += [engine.run([(cache, [one])]) for one in ids[70:]]
    assert torch.equal(torch.cat(parts), whole)
    other = engine.new_cache()
    both = engine.run([(other, ids[:9]), (engine.new_cache(), ids)])
    assert torch.equal(both[9:], whole)
    last = engine.run([(engine.new_cache(), ids[:9]), (engine.new_cache(), ids)], last_only=True)
    assert torch.equal(last, both[[8, 98]])


def test_long_passes_run_in_parts_and_tables_grow(llama, monkeypatch):
    from lessen.decoding.compiled import engine as module

    ids = tokens(150)
    whole = CompiledEngine(llama).run([(CompiledEngine(llama).new_cache(), ids)])
    monkeypatch.setattr(module, "ROWS", 64)
    monkeypatch.setattr(module, "_PLACES", 16)
    engine = CompiledEngine(llama)
    assert torch.equal(engine.run([(engine.new_cache(), ids)]), whole)


def test_threads_change_nothing(llama):
    engine, ids = CompiledEngine(llama), tokens(40)
    before, alone = torch.get_num_threads(), engine.run([(engine.new_cache(), ids)])
    try:
        torch.set_num_threads(2)
        assert torch.equal(engine.run([(engine.new_cache(), ids)]), alone)
    finally:
        torch.set_num_threads(before)


def test_the_decoder_takes_it_and_copies_exactly(llama):
    assert type(choose_engine(llama)) is CompiledEngine
    prompt = [*tokens(30), *tokens(30)]
    with Decoder(llama, pack=False) as decoder:
        with_drafts = decoder.complete([prompt, prompt[:17]], max_new_tokens=24)
        decoder.lengths = lambda candidates, *_: [0] * len(candidates)
        plainly = decoder.complete([prompt, prompt[:17]], max_new_tokens=24)
    assert [one.tokens for one in with_drafts] == [one.tokens for one in plainly]


def test_int8_layers_by_row_are_taken():
    from lessen.methods.weights.dynamic_int8 import DynamicInt8Linears

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, tie_word_embeddings=False)).eval()
    made = DynamicInt8Linears(min_weights=1).apply(model, Named(), Context())
    engine = CompiledEngine(made)
    with torch.inference_mode():
        expected = made(input_ids=torch.tensor([tokens(20)])).logits[0]
    assert near(engine.run([(engine.new_cache(), tokens(20))]), expected)


def test_inputs_are_scaled_before_they_are_rounded():
    model = packed()
    expected = model(input_ids=torch.tensor([tokens(20)])).logits[0].detach()
    for number, path in enumerate(("self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")):
        layer = model.model.layers[number % 2].get_submodule(path)
        with torch.device("meta"):
            scaled = ScaledInput(layer.in_features, layer.out_features, layer.bias is not None)
        scaled.layer, scaled.factors = layer, torch.linspace(0.5, 2, layer.in_features).half()
        parent, _, name = path.rpartition(".")
        setattr(model.model.layers[number % 2].get_submodule(parent), name, scaled)
    with torch.inference_mode():
        changed = model(input_ids=torch.tensor([tokens(20)])).logits[0]
    engine = CompiledEngine(model)
    assert near(engine.run([(engine.new_cache(), tokens(20))]), changed)
    assert not near(changed, expected)


def test_what_is_refused():
    with pytest.raises(InputError, match="no packed layers"):
        CompiledEngine(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval())
    other_scales = packed()
    other_scales.model.layers[0].self_attn.q_proj.scales = other_scales.model.layers[0].self_attn.q_proj.scales.float()
    with pytest.raises(InputError, match="query is a GroupQuantizedLinear, for which there is no kernel"):
        CompiledEngine(other_scales)
    with pytest.raises(InputError, match="within a window"):
        CompiledEngine(packed("Mistral", sliding_window=8))
    with pytest.raises(InputError, match="another gate"):
        CompiledEngine(packed(hidden_act="gelu"))
    watched = packed()
    watched.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="something watches"):
        CompiledEngine(watched)
    assert type(choose_engine(other_scales)) is StraightEngine


# steps

HEADS = attention.Heads(6, 2, 32, 32**-0.5)


def test_attention_is_softmax_over_the_cache():
    count, heads = 130, HEADS
    cache = ContiguousCache(1, heads, count)
    cache.states.fill_(float("nan"))  # what lies behind the last place is never used
    keys, values = (torch.randn(2, count, 32) * 3 for _ in range(2))
    cache.states[0, 0, :, :count], cache.states[0, 1, :, :count] = keys, values
    queries, out = torch.randn(3, 6 * 32), torch.empty(3, 6 * 32)
    places = torch.tensor([[place, place, cache.states.data_ptr(), cache.room, 0, 0, 0] for place in (0, 63, 129)])
    program = Program()
    arguments = [program.at, places.data_ptr(), queries.data_ptr(), 6 * 32, 0, out.data_ptr()]
    program.add(kernel(attention.attend(heads), True), arguments)
    program.run(3, 1)
    for row, place in enumerate((0, 63, 129)):
        for head in range(6):
            own = queries[row, head * 32 : head * 32 + 32]
            weights = torch.softmax(keys[head // 3, : place + 1] @ own * heads.scale, 0)
            expected = weights @ values[head // 3, : place + 1]
            assert torch.allclose(out[row, head * 32 : head * 32 + 32], expected, rtol=1e-4, atol=1e-5)


def test_norms_and_gates():
    given, weight = torch.randn(5, 48) * 30, torch.rand(48)
    out, gated = torch.empty(5, 48), torch.empty(5, 24)
    program = Program()
    program.add(kernel(rows.norm(1e-5)), [program.at, given.data_ptr(), 48, weight.data_ptr(), out.data_ptr()])
    program.add(kernel(rows.gate()), [program.at, given.data_ptr(), 24, gated.data_ptr()])
    program.run(5, 1)
    assert torch.allclose(out, nn.functional.rms_norm(given, (48,), weight, 1e-5), rtol=1e-5, atol=1e-6)
    assert torch.allclose(gated, nn.functional.silu(given[:, :24]) * given[:, 24:], rtol=1e-5, atol=1e-6)


def test_the_exponential():
    from lessen.decoding.compiled.floats import KIND, exponential
    from lessen.stored.kernels.functions import Function

    function = Function(("state", "given", "out", "count"))
    code = function.code
    with code.loop("0", "%count") as number:
        at = code.multiply(number, 8)
        value = exponential(code, code.get(KIND, code.place("%givenptr", at, "float")))
        code.set(KIND, value, code.place("%outptr", at, "float"))
    given = torch.cat([torch.linspace(-90, 88, 4000), torch.tensor([float("-inf"), 0.0, -0.0, 1e-30] * 2)])
    out = torch.empty_like(given)
    program = Program()
    program.add(kernel(function.text()), [program.at, given.data_ptr(), out.data_ptr(), len(given) // 8])
    program.run(1, 1)
    expected = given.double().exp()
    expected[given < -87] = 0
    assert torch.allclose(out.double(), expected, rtol=3e-7, atol=0)
    assert ctypes.sizeof(program.state) == 24
