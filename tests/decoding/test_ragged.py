from __future__ import annotations

import pytest
import torch

from lessen.decoding.engine import SingleEngine, choose_engine
from lessen.decoding.ragged import RaggedEngine, SequenceCache
from lessen.decoding.straight import StraightEngine
from tiny_models import bloom, gpt2, llama, mistral

PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18]]
NEW = [[20], [21, 22, 23, 24], [25, 26]]


def padded_reference(model, prompts, new):
    """An ordinary left-padded forward with attention mask and explicit positions; logits of the new tokens."""
    rows = [a + b for a, b in zip(prompts, new, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
    return torch.cat([row[-len(tail) :] for row, tail in zip(logits, new, strict=True)])


@pytest.mark.parametrize("make", [llama, mistral, gpt2])
@torch.inference_mode()
def test_a_mixed_round_equals_a_left_padded_forward(make):
    model = make()
    engine = RaggedEngine(model)
    caches = [engine.new_cache() for _ in PROMPTS]
    engine.run(list(zip(caches, PROMPTS, strict=True)), last_only=True)
    got = engine.run(list(zip(caches, NEW, strict=True)))
    assert [cache.length for cache in caches] == [len(a) + len(b) for a, b in zip(PROMPTS, NEW, strict=True)]
    assert (got - padded_reference(model, PROMPTS, NEW)).abs().max() < 1e-4


@torch.inference_mode()
def test_one_new_token_each_equals_ordinary_batched_decoding(model):
    engine = RaggedEngine(model)
    caches = [engine.new_cache() for _ in PROMPTS]
    engine.run(list(zip(caches, PROMPTS, strict=True)))
    new = [[20], [21], [22]]
    got = engine.run(list(zip(caches, new, strict=True)), last_only=True)
    assert (got - padded_reference(model, PROMPTS, new)).abs().max() < 1e-4


@torch.inference_mode()
def test_rejected_tokens_leave_no_trace(model):
    engine = RaggedEngine(model)
    clean, dirty = engine.new_cache(), engine.new_cache()
    engine.run([(clean, [3, 4, 5, 6])])
    engine.run([(dirty, [3, 4, 5, 30, 31, 32])])
    engine.cut(dirty, 3)
    engine.run([(dirty, [6])])
    assert torch.allclose(engine.run([(clean, [7, 8])]), engine.run([(dirty, [7, 8])]), atol=1e-5)


@torch.inference_mode()
def test_the_cache_grows_beyond_its_reserve(model):
    engine = RaggedEngine(model)
    small, large = engine.new_cache(1), engine.new_cache(200)
    for start in range(0, 120, 8):
        tokens = [2 + (start + step) % 30 for step in range(8)]
        got, want = engine.run([(small, tokens)]), engine.run([(large, tokens)])
        assert torch.equal(got, want)
    assert small.length == 120


def test_the_model_is_left_as_it_was(model):
    before = model.config._attn_implementation
    RaggedEngine(model).run([(SequenceCache(), [1, 2, 3])])
    assert model.config._attn_implementation == before
    with pytest.raises(IndexError):
        RaggedEngine(model).run([(SequenceCache(), [10_000])])
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("make", "kind"), [(llama, StraightEngine), (mistral, StraightEngine), (gpt2, RaggedEngine), (bloom, SingleEngine)]
)
def test_the_engine_fits_the_model(make, kind):
    assert type(choose_engine(make())) is kind
