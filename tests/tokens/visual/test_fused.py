"""ADEM-VL: the memory by hand, what is dropped, no picture no change, and what it costs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.flops import CPU_ATTENTION_FLOPS
from lessen.errors import InputError
from lessen.tokens.visual.fused import ADEMVL, Bridge, fused
from seeing_models import prompts, seeing

ONE = (1, 0, 1)


def adem(**more):
    torch.manual_seed(6)
    made = ADEMVL(32, 32, **{"layers": 2, "sizes": (16, 4), "inner": 8, "adapter": 3, "beta": 1.0, **more}).eval()
    with torch.no_grad():
        for one in made.adapters.parameters():
            one.normal_()
    return made


def run(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 10**6))
def test_the_lowest_signed_scores_are_dropped(size, drop, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden, key, value = (
        torch.randn(1, 1, 6, generator=draw),
        torch.randn(1, size, 6, generator=draw),
        torch.eye(size)[None],
    )
    scores = [float(torch.dot(F.silu(hidden[0, 0]), one)) for one in key[0]]
    made = fused(hidden, key, value, drop)[0, 0]
    least = sorted(scores)[int(drop * size)]
    wanted = torch.tensor([score if score >= least - 1e-6 else 0.0 for score in scores])
    assert torch.allclose(made, wanted, atol=1e-5)
    assert int((made == 0).sum()) == int(drop * size)


def test_pooled_grids_are_means_and_parameters_are_counted():
    sight = ADEMVL(32, 32, sizes=(16, 4), inner=8)
    features = torch.randn(2, 16, 32)
    made = sight.pooled(features)
    assert torch.equal(made[:, :16], features)
    grid = features.view(2, 2, 2, 2, 2, 32)
    assert torch.allclose(made[:, 16:], grid.mean((2, 4)).flatten(1, 2), atol=1e-6)
    with torch.device("meta"):
        large = ADEMVL(1024, 4096, layers=24)
    assert sum(p.numel() for p in large.parameters()) == 2 * 320 * 4096 + 2 * 659_584 + 24 * 2 * 1024 * 12 == 4_530_432
    assert not Bridge(4, 3, 2)[0].bias.any()


def test_layers_add_what_a_loop_says():
    model, batch = seeing("llava"), prompts("llava", (1,))
    sight = adem(layers=0, drop=0.3)
    with torch.no_grad():
        sight.second.normal_()
    patch = sight.attach(model)
    seen = []
    layer = model.model.language_model.layers[2].mlp
    plain = copy.deepcopy(layer.down_proj)
    handles = [
        layer.register_forward_hook(lambda _, x, y: seen.append((x[0], y))),
        plain.register_forward_hook(lambda *_: None),
    ]
    ready = patch.prepare(batch)
    assert ready["inputs_embeds"].shape[1] == int((batch["input_ids"] != 95).sum()) + 1  # one token for the picture
    run(model, batch)
    hidden, output = seen[0]
    with torch.no_grad():
        raw = []
        catch = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, x: raw.append(x[0]), prepend=True)
        patch.prepare(batch)
        catch.remove()
        tower = model.model.vision_tower(batch["pixel_values"]).pooler_output
        memory = sight.beta * sight.bridge(sight.pooled(raw[0]))[0]
        own = layer.forward(hidden)
        for place in (0, 3):
            scores = F.silu(hidden[0, place]) @ F.silu(memory + sight.first).T
            scores[scores < scores.sort().values[int(0.3 * 20)]] = 0
            wanted = own[0, place] + 0.1 * scores @ (memory + sight.second)
            assert torch.allclose(output[0, place], wanted, atol=1e-5)
        at = int((batch["input_ids"][0] == 95).nonzero()[0])
        assert torch.allclose(ready["inputs_embeds"][0, at], sight.of_class(tower)[0], atol=1e-5)
    for handle in handles:
        handle.remove()


def test_prompts_without_a_picture_are_untouched_in_any_batch():
    model, batch = seeing("llava"), prompts("llava", ONE)
    real = batch["attention_mask"][1].bool()
    text = {key: batch[key][1:2, real] for key in ("input_ids", "attention_mask")}
    before = run(model, text).logits
    sight = adem()
    with torch.no_grad():
        sight.second.normal_()
    sight.attach(model)
    assert torch.equal(run(model, text).logits, before)
    assert (run(model, batch).logits[1, -1] - before[0, -1]).abs().max() < 1e-5


def test_a_new_memory_of_zero_weight_shows_the_class_token_alone():
    model, batch = seeing("llava"), prompts("llava", (1,))
    plain = copy.deepcopy(model)
    sight = adem(beta=0.0, layers=0)
    patch = sight.attach(model)
    assert torch.equal(run(model, batch).logits, run(plain, patch.prepare(batch)).logits)  # V = 0 and E2 = 0


def test_generation_remembers_and_a_batch_equals_one_by_one():
    model, batch = seeing("llava"), prompts("llava", ONE)
    sight = adem()
    with torch.no_grad():
        sight.second.normal_()
    patch = sight.attach(model)
    together = run(model, batch).logits[:, -1]
    written = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)[:, -4:]
    assert patch.remembered() is None
    again = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False)[:, -4:]
    assert torch.equal(written, again)
    for row in range(3):
        real = batch["attention_mask"][row].bool()
        one = {key: batch[key][row : row + 1, real] for key in ("input_ids", "attention_mask")}
        if ONE[row]:
            one["pixel_values"] = batch["pixel_values"][row // 2 : row // 2 + 1]
        assert (run(model, one).logits[0, -1] - together[row]).abs().max() < 1e-4
        assert torch.equal(
            model.generate(**one, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, -4:], written[row]
        )


def test_multiply_adds_equal_the_counter():
    model, batch = seeing("llava"), prompts("llava", (1,))
    plain, sight = copy.deepcopy(model), adem(layers=0)
    patch = sight.attach(model)
    ready = patch.prepare(batch)
    words = ready["inputs_embeds"].shape[1]
    counters = []
    for one, inputs in ((model, batch), (plain, ready)):
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS) as counter, torch.no_grad():
            one(**inputs)
        counters.append(counter.get_total_flops() // 2)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS) as tower, torch.no_grad():
        plain.model.vision_tower(batch["pixel_values"], output_hidden_states=True)
        plain.model.multi_modal_projector(torch.zeros(1, 1, 32))  # what the host's projector is run on
    assert counters[0] - counters[1] - tower.get_total_flops() // 2 == sight.macs(words, 4)


def test_saved_states_copies_and_gradients():
    model, batch = seeing("llava"), prompts("llava", ONE)
    adem().attach(model)
    before = run(model, batch).logits
    assert torch.equal(run(copy.deepcopy(model), batch).logits, before)
    other = seeing("llava", seed=9)
    ADEMVL.from_config(model.adem_vl.config()).attach(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other.eval(), batch).logits, before)
    model(**batch).logits[0, -1].square().sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in model.adem_vl.parameters())


def test_misuse_is_one_line():
    for bad in ({"sizes": (5,)}, {"sizes": ()}, {"drop": 1.0}, {"inner": 0}):
        with pytest.raises(InputError):
            ADEMVL(32, 32, **bad)
    with pytest.raises(InputError, match="9 adapters for a tower of 2"):
        ADEMVL(32, 32, layers=9).attach(seeing("llava"))
    with pytest.raises(InputError, match="width 16, and"):
        ADEMVL(32, 16).attach(seeing("llava"))
    for more, pictures, message in (
        ({}, (1, 0), "no square grid of at least 256"),
        ({"sizes": (4,)}, (1, 2), "prompt 1 shows 2 pictures, and one fits"),
    ):
        model = seeing("llava")
        ADEMVL(32, 32, **more).attach(model)
        with pytest.raises(InputError, match=message):
            model(**prompts("llava", pictures))
