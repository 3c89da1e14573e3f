"""A decoder changes nothing of the user's model, and calls do not see one another."""

from __future__ import annotations

import random
import threading
from functools import partial
from types import MethodType

import pytest
import torch

from lessen.decoding import Decoder
from lessen.decoding.copying import TextMemory
from lessen.decoding.view import condition, shared_view
from tiny_models import FLAT, bloom, llama, phi3_longrope, plain, repeating_prompt


def everything(model):
    """Attributes of every module, its configuration, and its tensors by identity and content."""
    facts = [model.config.to_json_string(use_diff=False), model.config._attn_implementation]
    for name, module in model.named_modules():
        plain_facts = {key: value for key, value in vars(module).items() if isinstance(value, (int, str, float, tuple))}
        facts.append((name, type(module), id(module), plain_facts))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return facts, [(name, id(tensor), tensor.clone()) for name, tensor in tensors]


@pytest.mark.parametrize("make", [llama, bloom, phi3_longrope])
def test_the_model_is_left_as_it_was_during_a_pass_and_after(make, monkeypatch):
    model = make()
    before, seen = everything(model), []
    decoder = Decoder(model, costs=FLAT)
    inner = getattr(decoder.engine, "inner", decoder.engine)
    head = inner.view.get_output_embeddings()
    run = head.forward

    def watched(*given, **named):
        seen.append(everything(model))
        return run(*given, **named)

    monkeypatch.setattr(head, "forward", watched)
    decoder.complete([[5, 6, 7] * 4, [9, 8]], max_new_tokens=16)
    assert len(seen) > 2
    for after in [seen[0], seen[-1], everything(model)]:
        assert after[0] == before[0]
        for (name, place, old), (_, now, new) in zip(before[1], after[1], strict=True):
            assert place == now, name
            assert torch.equal(old, new), name


def test_a_view_shares_parameters_and_has_modules_and_configuration_of_its_own():
    model = llama()
    view = shared_view(model, "eager")
    own, shared = dict(model.named_parameters()), dict(view.named_parameters())
    assert own.keys() == shared.keys()
    assert all(own[name] is shared[name] for name in own)
    assert not {id(module) for module in model.modules()} & {id(module) for module in view.modules()}
    assert (model.config._attn_implementation, view.config._attn_implementation) == ("sdpa", "eager")
    assert all(module.config is view.config for module in view.modules() if hasattr(module, "config"))
    assert view.model.rotary_emb.inv_freq is not model.model.rotary_emb.inv_freq


def test_methods_and_partials_put_on_a_model_run_on_the_view():
    model = llama()
    model.forward = MethodType(type(model).forward, model)
    model.model.forward = partial(type(model.model).forward, model.model)
    view = shared_view(model)
    assert view.forward.__self__ is view
    assert view.model.forward.args == (view.model,)


def test_the_condition_changes_with_weights_layers_modes_and_hooks():
    model = llama()
    seen = {condition(model)}
    assert condition(model) in seen

    def grow():
        seen.add(condition(model))
        return len(seen)

    with torch.no_grad():
        model.lm_head.weight.mul_(1.0)
    assert grow() == 2
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(32, 48, bias=False)
    assert grow() == 3
    model.train()
    assert grow() == 4
    model.lm_head.register_forward_hook(lambda *_: None)
    assert grow() == 5
    model.set_attn_implementation("eager")
    assert grow() == 6


def test_a_hook_added_later_is_followed():
    model, calls = llama(), []
    decoder = Decoder(model, costs=FLAT)
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: (calls.append(1), output.flip(-1))[1])
    want = plain(model, [5, 6, 7] * 4, 10, eos_token_id=None)
    calls.clear()
    assert decoder.complete([[5, 6, 7] * 4], max_new_tokens=10, eos_token_id=None)[0].tokens == want
    assert calls


@pytest.mark.parametrize("make", [llama, phi3_longrope])
def test_threads_on_one_decoder_and_on_the_model_give_what_one_thread_gives(make):
    """Plain decoding runs on the same model meanwhile; texts are remembered by all."""
    model, rnd = make(), random.Random(0)
    decoder = Decoder(model, costs=FLAT)
    prompts = [repeating_prompt(rnd) for _ in range(12)]
    want = [plain(model, prompt, 30, eos_token_id=None) for prompt in prompts]
    wrong, errors = [], []

    def decode(start):
        try:
            for number in range(start, len(prompts), 3):
                done = decoder.complete([prompts[number]], max_new_tokens=30, eos_token_id=None)
                wrong.extend([number] if done[0].tokens != want[number] else [])
        except Exception as error:
            errors.append(error)

    def generate():
        try:
            for number in range(0, len(prompts), 3):
                if make is llama and plain(model, prompts[number], 30, eos_token_id=None) != want[number]:
                    wrong.append(("plain", number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=decode, args=(start,)) for start in range(3)]
    threads.append(threading.Thread(target=generate))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, errors) == ([], [])
    assert model.config._attn_implementation == "sdpa"


def test_texts_are_remembered_whole_by_many_threads():
    memory = TextMemory(limit=400, key_length=2)
    found, failed = [], []

    def work(base):
        try:
            for _ in range(150):
                memory.add([base + step for step in range(12)])
                found.extend((place.source, place.start) for place in memory.find([base, base + 1]))
                found.extend(tuple(place.draft(20)) for place in memory.find([base, base + 1]))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    drafts = [each for each in found if not isinstance(each[0], list)]
    assert drafts
    assert all(draft == tuple(range(draft[0], draft[0] + 10)) and draft[0] % 100 == 2 for draft in drafts)
