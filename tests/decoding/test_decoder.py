from __future__ import annotations

import random

import pytest
import torch

from lessen.decoding import Decoder
from tiny_models import FLAT, bloom, gpt2, llama, mistral, plain, repeating_prompt


@pytest.fixture(scope="module")
def decoder(model):
    return Decoder(model, costs=FLAT)


@pytest.mark.parametrize("make", [llama, mistral, gpt2, bloom])
@pytest.mark.parametrize("key_length", [1, 2, 3, 50])
def test_greedy_equals_plain_decoding_alone_and_in_batches(make, key_length):
    model, rnd = make(), random.Random(key_length)
    decoder = Decoder(model, key_length=key_length, costs=FLAT)
    for size in (1, 3, 5):
        prompts = [repeating_prompt(rnd) for _ in range(size)]
        done = decoder.complete(prompts, max_new_tokens=20)
        assert [each.tokens for each in done] == [plain(model, prompt) for prompt in prompts]
        if key_length == 50:
            assert decoder.report.drafted == 0
            assert decoder.report.passes == max(len(each.tokens) for each in done) - 1


def test_drafts_are_made_accepted_and_rejected(decoder):
    rnd = random.Random(7)
    drafted = accepted = 0
    for _ in range(10):
        decoder.complete([repeating_prompt(rnd)], max_new_tokens=24)
        drafted, accepted = drafted + decoder.report.drafted, accepted + decoder.report.accepted
    assert 0 < accepted < drafted


@pytest.mark.parametrize("new", [1, 2, 3, 5, 8, 13])
def test_the_length_limit_holds_inside_a_draft(decoder, new):
    prompt = [5, 6, 7, 8] * 4
    (done,) = decoder.complete([prompt], max_new_tokens=new)
    assert done.tokens == plain(decoder.model, prompt, new)
    assert done.finish in ("length", "eos")


def test_end_of_sequence_at_every_place_of_an_accepted_block(decoder):
    prompt = [5, 6, 7, 8] * 4
    full = plain(decoder.model, prompt, 24, eos_token_id=None)
    assert decoder.complete([prompt], max_new_tokens=24, eos_token_id=None)[0].tokens == full
    for token in sorted(set(full)):
        (done,) = decoder.complete([prompt], max_new_tokens=24, eos_token_id=token)
        assert done.tokens == full[: full.index(token) + 1]
        assert done.finish == "eos"
        two = decoder.complete([prompt], max_new_tokens=24, eos_token_id=[token, full[0]])[0].tokens
        assert two == full[:1]


def test_batch_order_does_not_matter_and_lengths_differ(decoder):
    rnd = random.Random(3)
    prompts = [repeating_prompt(rnd) for _ in range(6)]
    forward = [each.tokens for each in decoder.complete(prompts, max_new_tokens=16)]
    backward = [each.tokens for each in decoder.complete(prompts[::-1], max_new_tokens=16)]
    assert forward == backward[::-1]
    assert len({tuple(tokens) for tokens in forward}) > 1


def test_rows_and_cache_lengths_after_every_pass(model, monkeypatch):
    decoder, rows, spans = Decoder(model, costs=FLAT), [], []
    run, rounds = decoder.engine.run, decoder._take

    def counting(work, last_only=False):
        rows.append((last_only, sum(len(tokens) for _, tokens in work)))
        for cache, tokens in work:
            spans.append((cache.length, len(tokens)))
        return run(work, last_only)

    def checking(requests, drafts, logits):
        assert all(request.finish is None for request in requests)  # finished sequences are not computed
        for request in requests:
            assert request.cache.length >= len(request.tokens) - (not request.emitted)
        return rounds(requests, drafts, logits)

    monkeypatch.setattr(decoder.engine, "run", counting)
    monkeypatch.setattr(decoder, "_take", checking)
    prompts = [[5, 6, 7, 8] * 4, [9, 10, 11] * 3, [12]]
    done = decoder.complete(prompts, max_new_tokens=15)
    report = decoder.report
    assert sum(count for first, count in rows if not first) == report.rows
    assert report.rows - report.drafted + report.accepted == sum(len(each.tokens) for each in done) - len(prompts)
    assert report.passes == sum(not first for first, _ in rows) <= 14
    lengths = iter(spans)
    assert [next(lengths) for _ in prompts] == [(0, len(prompt)) for prompt in prompts]


def test_caches_hold_all_but_the_last_token_after_each_pass(model, monkeypatch):
    decoder, cut = Decoder(model, costs=FLAT), []
    original = decoder.engine.cut
    monkeypatch.setattr(
        decoder.engine, "cut", lambda cache, length: (original(cache, length), cut.append((cache, length)))
    )
    decoder.complete([[5, 6, 7, 8] * 4], max_new_tokens=15)
    assert cut
    assert [length for _, length in cut] == sorted(length for _, length in cut)
    assert cut[-1][0].length == cut[-1][1] == 16 + 15 - 1


def test_generate_returns_what_model_generate_returns(decoder):
    model = decoder.model
    ids = torch.tensor([[0, 0, 5, 6, 7, 5, 6, 7], [9, 8, 9, 8, 9, 8, 9, 8], [0, 0, 0, 0, 0, 0, 0, 12]])
    mask = (ids != 0).long()
    want = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert torch.equal(decoder.generate(ids, mask, max_new_tokens=12, do_sample=False), want)
    assert torch.equal(decoder.generate(input_ids=ids, max_new_tokens=12, do_sample=False), want)
    assert torch.equal(
        decoder.generate(ids[1:2], max_length=15, do_sample=False),
        model.generate(ids[1:2], max_length=15, do_sample=False),
    )
    several = decoder.generate(ids[:2], mask[:2], max_new_tokens=12, num_return_sequences=3, do_sample=True)
    assert several.shape[0] == 6
    assert torch.equal(several[:, :8], ids[:2].repeat_interleave(3, 0))


def test_the_default_length_is_that_of_transformers(decoder):
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(
        decoder.generate(ids, do_sample=False, eos_token_id=None),
        decoder.model.generate(ids, do_sample=False, eos_token_id=None),
    )


def test_later_calls_copy_from_earlier_texts_without_changing_the_output(model):
    prompt = [21, 22, 23, 24, 25, 26, 27]
    fresh, reused = Decoder(model, costs=FLAT, remember=0), Decoder(model, costs=FLAT)
    want = fresh.complete([prompt], max_new_tokens=30, eos_token_id=None)[0].tokens
    first = reused.complete([prompt], max_new_tokens=30, eos_token_id=None)
    without = reused.report
    second = reused.complete([prompt], max_new_tokens=30, eos_token_id=None)
    assert first[0].tokens == second[0].tokens == want
    assert reused.report.passes < without.passes


def test_generation_stops_at_the_end_of_the_context():
    model = llama(max_position_embeddings=32)
    (done,) = Decoder(model, costs=FLAT).complete([[5, 6, 7] * 9], max_new_tokens=100, eos_token_id=None)
    assert len(done.tokens) == 32 - 27
    assert done.tokens == plain(model, [5, 6, 7] * 9, 5, eos_token_id=None)


def test_many_prompts_are_prefilled_in_several_passes(model, monkeypatch):
    monkeypatch.setattr("lessen.decoding.decoder._PREFILL_ROWS", 20)
    decoder, rnd = Decoder(model, costs=FLAT), random.Random(1)
    prompts = [repeating_prompt(rnd) for _ in range(7)]
    done = decoder.complete(prompts, max_new_tokens=6)
    assert [each.tokens for each in done] == [plain(model, prompt, 6) for prompt in prompts]
