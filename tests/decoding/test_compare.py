from __future__ import annotations

import json

import pytest
import torch
import transformers

from lessen.decoding import Decoder, compare
from lessen.decoding.compare import plain_tokens
from lessen.decoding.report import Comparison, DecodeReport
from lessen.errors import ConfigError
from tiny_models import FLAT, llama, plain


def report(**changes):
    values = {
        "prompts": 1, "prompt_tokens": 10, "new_tokens": 100, "passes": 49, "rows": 109, "drafted": 60, "accepted": 50,
        "assistant_drafted": 0, "assistant_accepted": 0, "seconds": 2.0, "prefill_seconds": 0.1, "unpadded": True,
        "dtype": "float32", "packed_bytes": 0,
    }  # fmt: skip
    return DecodeReport(**values | changes)


def test_comparison_with_plain_decoding(model):
    decoder = Decoder(model, costs=FLAT)
    prompts = [[5, 6, 7] * 5, [8, 9], [10, 11, 12, 13] * 3]
    seen = []
    done = compare(decoder, prompts, max_new_tokens=14, on_token=lambda number, _: seen.append(number))
    assert [each.tokens for each in done] == [plain(model, prompt, 14) for prompt in prompts]
    found = decoder.report.comparison
    assert (found.identical, found.prompts, found.agreement) == (3, 3, 1.0)
    assert found.plain_seconds > 0
    assert found.speed_up == found.plain_seconds / decoder.report.seconds
    assert set(seen) == {0, 1, 2}


def test_agreement_is_reported_in_half_precision():
    decoder = Decoder(llama().to(torch.bfloat16), costs=FLAT)
    compare(decoder, [[5, 6, 7] * 5, [8, 9], [10, 11, 12, 13] * 3], max_new_tokens=14)
    found = decoder.report.comparison
    assert decoder.report.dtype == "bfloat16"
    assert 0.0 < found.agreement <= 1.0
    assert (found.agreement == 1.0) == (found.identical == found.prompts)


def test_sampling_cannot_be_compared(model):
    with pytest.raises(ConfigError, match="greedy"):
        compare(Decoder(model, costs=FLAT), [[5]], do_sample=True)


def test_counts_and_rates():
    one = report()
    assert one.tokens_per_pass == 99 / 49
    assert one.tokens_per_second == 50.0
    json.dumps(one.as_dict())


@pytest.mark.parametrize(
    ("changes", "plain_seconds", "words"),
    [
        ({}, 5.0, "Decoding was 2.50 times as fast"),
        ({}, 1.9, "Copying does not pay here: 50% of the tokens"),
        ({"accepted": 2}, 2.1, "Copying does not pay here: 2% of the tokens"),
        ({}, None, "run with a comparison"),
        ({"drafted": 0, "accepted": 0}, None, "Nothing was drafted"),
    ],
)
def test_the_verdict_says_plainly_whether_it_paid(changes, plain_seconds, words):
    comparison = None if plain_seconds is None else Comparison(plain_seconds, 2.0, 1, 1, 1.0)
    one = report(comparison=comparison, **changes)
    assert words in one.verdict()
    assert one.lines()[-1] == one.verdict()


def test_differences_are_reported_and_not_hidden():
    text = "\n".join(report(dtype="bfloat16", comparison=Comparison(5.0, 2.0, 3, 4, 0.875)).lines())
    assert "3 of 4 outputs identical (bfloat16)" in text
    assert "87.5% of tokens" in text


@pytest.mark.parametrize(
    "options",
    [{"eos_token_id": None}, {"eos_token_id": 7}, {"eos_token_id": [7, 9]}, {"pad_token_id": 3, "eos_token_id": 7},
     {"seed": 3}, {"repetition_penalty": 1.3}, {"max_length": 20, "max_new_tokens": None}, {"min_new_tokens": 6},
     {"forced_eos_token_id": 3}, {"use_cache": True}],
)  # fmt: skip
def test_both_texts_are_judged_by_the_rules_of_the_call(model, options):
    decoder, options = Decoder(model, costs=FLAT), {"max_new_tokens": 14} | options
    prompts = [[5, 6, 7] * 5, [8, 9], [10, 11, 12, 13] * 3]
    done = compare(decoder, prompts, **options)
    found = decoder.report.comparison
    assert (found.identical, found.agreement) == (3, 1.0)
    assert [each.tokens for each in done] == plain_tokens(decoder, prompts, **options)[0]
    sees = {"repetition_penalty", "min_new_tokens", "forced_eos_token_id"} & set(options) or "max_length" in options
    assert found.together is not bool(sees)
    assert ("one prompt at a time" in "\n".join(decoder.report.lines())) is bool(sees)


def test_stop_strings_and_criteria_end_both_texts(model, tokenizer):
    decoder = Decoder(model, tokenizer, costs=FLAT)
    prompts = [[5, 6, 7, 8] * 4, [9, 8]]
    full = [plain(model, prompt, 20, eos_token_id=None) for prompt in prompts]
    stop = tokenizer.decode(full[0][3:5])
    done = compare(decoder, prompts, max_new_tokens=20, eos_token_id=None, stop_strings=[stop])
    assert done[0].finish == "stop string"
    assert decoder.report.comparison.identical == 2

    class Sum(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return torch.tensor([bool(row.sum() > 300) for row in input_ids])

    done = compare(
        decoder,
        prompts,
        max_new_tokens=20,
        eos_token_id=None,
        stopping_criteria=transformers.StoppingCriteriaList([Sum()]),
    )
    assert done[0].finish == "criterion"
    assert decoder.report.comparison.identical == 2


def test_a_prefix_function_numbers_the_prompts_in_both(model):
    decoder = Decoder(model, costs=FLAT)
    compare(
        decoder,
        [[5, 6, 7] * 5, [8, 9]],
        max_new_tokens=8,
        eos_token_id=None,
        prefix_allowed_tokens_fn=lambda row, ids: list(range(2 + row, 20 + row)),
    )
    assert decoder.report.comparison.identical == 2


def test_a_model_that_samples_by_default_and_a_time_limit_are_refused(model):
    sampling = llama()
    sampling.generation_config.do_sample = True
    decoder = Decoder(sampling, costs=FLAT)
    with pytest.raises(ConfigError, match=r"generation configuration samples\); set do_sample=False"):
        compare(decoder, [[5]], max_new_tokens=2)
    compare(decoder, [[5, 6, 7]], max_new_tokens=2, do_sample=False)
    assert decoder.report.comparison.identical == 1
    with pytest.raises(ConfigError, match="leave max_time out"):
        compare(decoder, [[5]], max_new_tokens=2, do_sample=False, max_time=1.0)


def test_texts_that_the_context_ends_are_compared_up_to_it():
    model = llama(max_position_embeddings=32)
    decoder = Decoder(model, costs=FLAT)
    compare(decoder, [[5, 6, 7] * 9, [8, 9]], max_new_tokens=20, eos_token_id=None)
    assert (decoder.report.comparison.identical, decoder.report.cut_by_context) == (2, 1)
