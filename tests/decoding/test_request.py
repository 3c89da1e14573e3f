"""Sampling, processors, stop rules and streaming: exact inside an accepted block."""

from __future__ import annotations

import collections
import itertools
import math
import random

import pytest
import torch
import transformers
from transformers import LogitsProcessorList, StoppingCriteriaList

from lessen.decoding import Decoder
from tiny_models import FLAT, llama, plain, repeating_prompt


@pytest.fixture(scope="module")
def decoder(model, tokenizer):
    return Decoder(model, tokenizer, costs=FLAT, remember=0)


SAMPLED = [
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8, "top_k": 0},
    {"temperature": 0.5, "repetition_penalty": 1.1, "top_k": 0},
    {"temperature": 0.5, "min_p": 0.05, "top_k": 0, "repetition_penalty": 1.05},
]


@pytest.mark.parametrize("options", SAMPLED)
def test_one_sequence_is_the_same_draw_as_plain_sampling_under_the_same_seed(options):
    decoder = Decoder(llama(vocab=8, seed=4, num_hidden_layers=1, initializer_range=0.35), costs=FLAT, remember=0)
    rnd, accepted = random.Random(0), 0
    for seed in range(12):
        prompt = repeating_prompt(rnd, vocab=8)
        torch.manual_seed(seed)
        want = plain(decoder.model, prompt, 16, do_sample=True, **options)
        torch.manual_seed(seed)
        assert decoder.complete([prompt], max_new_tokens=16, do_sample=True, **options)[0].tokens == want
        accepted += decoder.report.accepted
    assert accepted > 0


def exact_law(model, prompt, length, options):
    """Joint probabilities of all continuations of `length` tokens, by enumeration with transformers' processors."""
    config, _ = model._prepare_generation_config(None, do_sample=True, eos_token_id=None, **options)
    model._prepare_special_tokens(config, True)
    processors = model._get_logits_processor(
        config, input_ids_seq_length=len(prompt), encoder_input_ids=torch.tensor([prompt])
    )
    law = {(): 1.0}
    with torch.inference_mode():
        for _ in range(length):
            prefixes = list(law)
            ids = torch.tensor([prompt + list(prefix) for prefix in prefixes])
            chances = processors(ids, model(ids).logits[:, -1].float()).softmax(-1)
            law = {
                (*prefix, token): law[prefix] * float(chances[row, token])
                for row, prefix in enumerate(prefixes)
                for token in range(chances.shape[1])
                if chances[row, token] > 0
            }
    return law


def chi_square(counts, law, total):
    """Statistic and degrees of freedom over cells that expect at least five, the rest pooled."""
    assert set(counts) <= set(law)
    common = [cell for cell, chance in law.items() if chance * total >= 5]
    rest = 1.0 - sum(law[cell] for cell in common)
    cells = [(counts[cell], law[cell] * total) for cell in common]
    if rest * total >= 5:
        cells.append((total - sum(count for count, _ in cells), rest * total))
    return sum((count - expected) ** 2 / expected for count, expected in cells), len(cells) - 1


@pytest.mark.parametrize("options", [{"top_k": 0}, {"temperature": 0.8, "top_k": 4, "repetition_penalty": 1.2}])
def test_joint_counts_of_sampled_batches_follow_the_exact_law(options):
    model = llama(vocab=5, seed=4, num_hidden_layers=1, initializer_range=0.35)
    prompt, total = [2, 3, 4, 2, 3, 4, 2, 3], 2500
    decoder = Decoder(model, costs=FLAT, remember=0)
    counts, drafted, accepted = collections.Counter(), 0, 0
    torch.manual_seed(11)
    for _ in range(total // 250):
        done = decoder.complete([prompt] * 250, max_new_tokens=4, do_sample=True, eos_token_id=None, **options)
        counts.update(tuple(each.tokens) for each in done)
        drafted, accepted = drafted + decoder.report.drafted, accepted + decoder.report.accepted
    statistic, freedom = chi_square(counts, exact_law(model, prompt, 4, options), total)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)  # about one false alarm in 10 000
    assert 0.05 < accepted / drafted < 0.95


def test_the_test_of_joint_counts_can_fail():
    model = llama(vocab=5, seed=4, num_hidden_layers=1, initializer_range=0.35)
    law = exact_law(model, [2, 3, 4, 2, 3, 4, 2, 3], 4, {"top_k": 0})
    other = exact_law(model, [2, 3, 4, 2, 3, 4, 2, 3], 4, {"top_k": 0, "temperature": 0.7})
    statistic, freedom = chi_square({cell: round(2500 * chance) for cell, chance in other.items()}, law, 2500)
    assert statistic > freedom + 4 * math.sqrt(2 * freedom)


def test_a_seed_gives_each_row_its_own_draw_alone_or_in_a_batch(decoder):
    prompts = [[5, 6, 7] * 4, [9, 8] * 5, [12, 13, 14, 15] * 2]
    batch = decoder.complete(prompts, seed=40, max_new_tokens=12, do_sample=True)
    for number, prompt in enumerate(prompts):
        alone = decoder.complete([prompt], seed=40 + number, max_new_tokens=12, do_sample=True)
        assert alone[0].tokens == batch[number].tokens


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 10},
        {"bad_words_ids": [[7]]},
        {"suppress_tokens": [5, 9]},
        {"encoder_repetition_penalty": 1.5},
    ],
)
def test_processors_are_applied_position_by_position(decoder, options):
    rnd = random.Random(5)
    prompts = [repeating_prompt(rnd) for _ in range(4)]
    done = decoder.complete(prompts, max_new_tokens=16, **options)
    assert [each.tokens for each in done] == [plain(decoder.model, prompt, 16, **options) for prompt in prompts]


def test_a_processor_with_state_is_called_once_a_token_with_the_true_prefix(decoder):
    class Counting(transformers.LogitsProcessor):
        def __init__(self):
            self.seen = []

        def __call__(self, input_ids, scores):
            self.seen.append(input_ids[0].tolist())
            scores[:, 2 + len(self.seen) % 3] += 3.0
            return scores

    prompt, own, other = [5, 6, 7] * 5, Counting(), Counting()
    want = plain(decoder.model, prompt, 14, logits_processor=LogitsProcessorList([other]))
    done = decoder.complete([prompt], max_new_tokens=14, logits_processor=LogitsProcessorList([own]))
    assert done[0].tokens == want
    assert own.seen == other.seen


def test_allowed_tokens_by_prefix(decoder):
    prompts = [[5, 6, 7] * 4, [9, 8] * 5]

    def allowed(row, ids):
        return list(range(2 + row, 30)) if len(ids) % 2 else list(range(4, 12 + row))

    done = decoder.complete(prompts, max_new_tokens=12, prefix_allowed_tokens_fn=allowed)
    for row, prompt in enumerate(prompts):
        want = plain(decoder.model, prompt, 12, prefix_allowed_tokens_fn=lambda _, ids, row=row: allowed(row, ids))
        assert done[row].tokens == want


def test_stop_strings_end_inside_an_accepted_block(decoder, tokenizer):
    prompt = [5, 6, 7, 8] * 4
    full = plain(decoder.model, prompt, 24, eos_token_id=None)
    for first, second in itertools.pairwise(full):
        stop = tokenizer.decode([first, second])
        options = {"eos_token_id": None, "stop_strings": [stop]}
        want = plain(decoder.model, prompt, 24, tokenizer=tokenizer, **options)
        (done,) = decoder.complete([prompt], max_new_tokens=24, **options)
        assert done.tokens == want
        assert done.finish == "stop string"


def test_stopping_criteria_see_every_token(decoder):
    class Sum(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return torch.tensor([bool(input_ids.sum() > 300)])

    prompts = [[5, 6, 7, 8] * 4, [9, 10] * 4]
    done = decoder.complete(
        prompts, max_new_tokens=30, stopping_criteria=StoppingCriteriaList([Sum()]), eos_token_id=None
    )
    for prompt, each in zip(prompts, done, strict=True):
        want = plain(decoder.model, prompt, 30, stopping_criteria=StoppingCriteriaList([Sum()]), eos_token_id=None)
        assert each.tokens == want


def test_a_time_limit_ends_inside_an_accepted_block(decoder, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("lessen.decoding.settings.time.monotonic", lambda: float(next(ticks)))
    prompt = [5, 6, 7, 8] * 4
    full = plain(decoder.model, prompt, 24, eos_token_id=None)
    (done,) = decoder.complete([prompt], max_new_tokens=24, max_time=7.5, eos_token_id=None)
    assert done.finish == "time"
    assert done.tokens == full[: len(done.tokens)]
    assert len(done.tokens) == 8  # the clock advances by one a token: as in plain decoding, one token passes the limit


def test_streaming_gives_the_same_tokens_in_order(decoder):
    class Recorder:
        def __init__(self):
            self.got, self.ended = [], 0

        def put(self, value):
            self.got.append(value.flatten().tolist())

        def end(self):
            self.ended += 1

    ids, own, other = torch.tensor([[5, 6, 7, 8] * 4]), Recorder(), Recorder()
    decoder.generate(ids, max_new_tokens=12, streamer=own, do_sample=False)
    decoder.model.generate(ids, max_new_tokens=12, streamer=other, do_sample=False)
    assert own.got == other.got
    assert own.ended == 1


def test_tokens_are_reported_as_they_become_certain(decoder):
    seen = collections.defaultdict(list)
    prompts = [[5, 6, 7, 8] * 4, [9, 10] * 4]
    done = decoder.complete(prompts, max_new_tokens=9, on_token=lambda number, token: seen[number].append(token))
    assert [seen[0], seen[1]] == [each.tokens for each in done]
