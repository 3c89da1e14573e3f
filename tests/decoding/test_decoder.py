from __future__ import annotations

import random

import pytest
import torch
import transformers

from lessen.decoding import Decoder
from lessen.decoding.call import Call
from lessen.errors import InputError
from tiny_models import FLAT, bloom, gpt2, llama, mistral, mpt, plain, repeating_prompt


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


@pytest.mark.parametrize("make", [llama, mistral, gpt2])
def test_a_run_warns_of_nothing(make, recwarn):
    """Each FutureWarning of transformers stood on every run of `lessen generate`."""
    Decoder(make(), costs=FLAT).complete([[5, 6, 7, 8] * 4], max_new_tokens=8)
    assert not [str(one.message) for one in recwarn if issubclass(one.category, (FutureWarning, DeprecationWarning))]


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
    run, rounds = decoder.engine.run, Call._take

    def counting(work, last_only=False):
        rows.append((last_only, sum(len(tokens) for _, tokens in work)))
        for cache, tokens in work:
            spans.append((cache.length, len(tokens)))
        return run(work, last_only)

    def checking(call, requests, drafts, logits):
        assert all(request.finish is None for request in requests)  # finished sequences are not computed
        for request in requests:
            assert request.cache.length >= len(request.tokens) - (not request.emitted)
        return rounds(call, requests, drafts, logits)

    monkeypatch.setattr(decoder.engine, "run", counting)
    monkeypatch.setattr(Call, "_take", checking)
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


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 14},
        {"max_length": 14, "forced_eos_token_id": 3},
        {"max_new_tokens": 8, "forced_eos_token_id": 3},
        {"max_new_tokens": 12, "min_length": 14, "eos_token_id": 5},
        {"max_new_tokens": 9, "forced_bos_token_id": 7},
        {"max_new_tokens": 12, "repetition_penalty": 1.4},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 12, "encoder_repetition_penalty": 1.4},
        {"max_new_tokens": 12, "min_new_tokens": 6},
        {"max_new_tokens": 12, "begin_suppress_tokens": [4, 6]},
        {"max_new_tokens": 12, "exponential_decay_length_penalty": (3, 1.5), "eos_token_id": 5},
        {"forced_eos_token_id": 3},
        {},
    ],
)
def test_lengths_and_rules_count_the_padding_of_a_row_as_transformers_does(decoder, options):
    ids = torch.tensor([[0, 0, 0, 0, 5, 6, 7, 8], [9, 8, 9, 8, 9, 8, 9, 8], [0, 0, 0, 0, 0, 0, 0, 12]])
    mask, options = (ids != 0).long(), {"do_sample": False, "eos_token_id": None} | options
    want = decoder.model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(decoder.generate(ids, mask, **options), want)


def test_a_prefix_function_sees_the_padded_row_and_its_number(decoder):
    ids = torch.tensor([[0, 0, 5, 6], [9, 8, 9, 8]])
    seen = {"own": [], "other": []}

    def allowed(kind):
        def function(row, prefix):
            seen[kind].append((row, prefix.tolist()))
            return list(range(2 + row, 14 + len(prefix)))

        return function

    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    want = decoder.model.generate(
        ids, attention_mask=(ids != 0).long(), prefix_allowed_tokens_fn=allowed("other"), **options
    )
    got = decoder.generate(ids, (ids != 0).long(), prefix_allowed_tokens_fn=allowed("own"), **options)
    assert torch.equal(got, want)
    assert sorted(seen["own"]) == sorted(seen["other"])


def test_a_prefix_function_with_several_samples_numbers_the_prompts(decoder):
    rows = []
    ids = torch.tensor([[5, 6, 7], [9, 8, 9]])
    out = decoder.generate(
        ids,
        do_sample=True,
        num_return_sequences=2,
        max_new_tokens=6,
        eos_token_id=None,
        seed=0,
        prefix_allowed_tokens_fn=lambda row, _: (rows.append(row), [4 + row, 6 + row])[1],
    )
    assert set(rows) == {0, 1}
    assert set(out[:2, 3:].flatten().tolist()) <= {4, 6}
    assert set(out[2:, 3:].flatten().tolist()) <= {5, 7}


def test_a_criterion_of_the_caller_replaces_the_default_of_its_kind(decoder):
    longer = transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(40)])
    other = transformers.StoppingCriteriaList([transformers.generation.EosTokenCriteria(7)])
    for criteria in (longer, other):
        options = {"do_sample": False, "stopping_criteria": criteria, "eos_token_id": 5}
        want = decoder.model.generate(torch.tensor([[9, 8] * 4]), **options)
        assert torch.equal(decoder.generate(torch.tensor([[9, 8] * 4]), **options), want)


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
    decoder, prompt = Decoder(model, costs=FLAT), [5, 6, 7] * 9
    (done,) = decoder.complete([prompt], max_new_tokens=100, eos_token_id=None)
    assert len(done.tokens) == 32 - 27
    assert done.tokens == plain(model, prompt, 5, eos_token_id=None)
    assert done.finish == "context"
    assert decoder.report.cut_by_context == 1
    assert "1 of 1 texts ended at the model's context of 32 tokens" in "\n".join(decoder.report.lines())
    with pytest.warns(UserWarning, match="context of 32 tokens"):
        decoder.generate(torch.tensor([prompt]), max_new_tokens=100, eos_token_id=None)
    assert decoder.complete([prompt], max_new_tokens=5, eos_token_id=None)[0].finish == "length"


def test_a_context_of_another_name_is_a_context():
    model = mpt(32)
    decoder, prompt = Decoder(model), [5, 6, 7] * 9
    (done,) = decoder.complete([prompt], max_new_tokens=100, eos_token_id=None)
    assert (len(done.tokens), done.finish) == (32 - 27, "context")
    assert done.tokens == plain(model, prompt, 5, eos_token_id=None)
    with pytest.raises(InputError, match="the model's context is 32"):
        decoder.complete([[5] * 32])


def test_many_prompts_are_prefilled_in_several_passes(model, monkeypatch):
    monkeypatch.setattr("lessen.decoding.call.PREFILL_ROWS", 20)
    decoder, rnd = Decoder(model, costs=FLAT), random.Random(1)
    prompts = [repeating_prompt(rnd) for _ in range(7)]
    done = decoder.complete(prompts, max_new_tokens=6)
    assert [each.tokens for each in done] == [plain(model, prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("row", [[5, 6, 7, 8, 0, 0], [0, 5, 0, 6, 7, 8]])
def test_padding_behind_or_inside_a_text_is_refused(decoder, row):
    """`generate` would go on from the padding, and say something else than for the text alone."""
    ids = torch.tensor([[9, 8, 9, 8, 9, 8], row])
    for mask in ((ids != 0).long(), None):
        with pytest.raises(InputError, match="row 1 has padding behind or inside its text; pad on the left"):
            decoder.generate(ids, mask, max_new_tokens=4)
    whole = torch.ones_like(ids)
    want = decoder.model.generate(ids, attention_mask=whole, max_new_tokens=4, do_sample=False)
    assert torch.equal(decoder.generate(ids, whole, max_new_tokens=4, do_sample=False), want)
