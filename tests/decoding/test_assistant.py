from __future__ import annotations

import random

import pytest
import torch

from lessen.decoding import CostCurve, Decoder
from lessen.decoding.assistant import Drafting
from lessen.errors import InputError
from tiny_models import FLAT, llama, plain, repeating_prompt

CHEAP = CostCurve((1, 4096), (1e-4, 1.1e-4))
DEAR = CostCurve((1, 2), (1.0, 2.0))


def decoder_with(model, helper, costs=FLAT):
    decoder = Decoder(model, assistant=helper, costs=costs, remember=0, key_length=30)
    decoder.assistant.costs = CHEAP
    return decoder


@pytest.mark.parametrize("seed", [0, 9])
def test_output_is_that_of_plain_decoding_whoever_drafts(model, seed):
    """Seed 0 is the model itself, which drafts perfectly; seed 9 is a stranger."""
    decoder, rnd = decoder_with(model, llama(seed=seed)), random.Random(seed)
    for size in (1, 3):
        prompts = [repeating_prompt(rnd) for _ in range(size)]
        done = decoder.complete(prompts, max_new_tokens=40, eos_token_id=None)
        assert [each.tokens for each in done] == [plain(model, prompt, 40, eos_token_id=None) for prompt in prompts]
        assert decoder.report.assistant_drafted > 0
        if seed == 0:
            assert decoder.report.assistant_accepted == decoder.report.assistant_drafted
            assert decoder.report.passes < 12


def test_sampling_with_an_assistant_is_the_same_draw(model):
    decoder = decoder_with(model, llama(seed=0))
    for seed in range(5):
        torch.manual_seed(seed)
        want = plain(model, [5, 6, 7], 16, do_sample=True, temperature=0.4)
        torch.manual_seed(seed)
        assert decoder.complete([[5, 6, 7]], max_new_tokens=16, do_sample=True, temperature=0.4)[0].tokens == want


def test_an_assistant_that_is_always_wrong_rests(model):
    decoder = decoder_with(model, llama(seed=9))
    decoder.complete([[5, 6, 7]], max_new_tokens=100, eos_token_id=None)
    drafted = decoder.report.assistant_drafted
    decoder.assistant.costs = CostCurve((1,), (0.5,))
    decoder.costs = CostCurve((1, 4096), (1.0, 400.0))
    decoder.complete([[5, 6, 7]], max_new_tokens=100, eos_token_id=None)
    assert decoder.report.assistant_drafted < drafted / 2


def test_nothing_is_drafted_when_it_cannot_pay(model):
    decoder = decoder_with(model, llama(seed=0), costs=DEAR)
    decoder.complete([[5, 6, 7]], max_new_tokens=30, eos_token_id=None)
    assert decoder.report.assistant_drafted == 0


def test_what_a_call_drafted_is_freed_with_it(model, monkeypatch):
    made = []
    new = Drafting.__init__
    monkeypatch.setattr(Drafting, "__init__", lambda self, assistant: (new(self, assistant), made.append(self))[0])
    decoder = decoder_with(model, llama(seed=9))
    decoder.complete([[5, 6, 7], [8, 9]], max_new_tokens=10)
    assert [each._states for each in made] == [{}]


def test_an_assistant_with_a_short_context_is_measured_within_it(model):
    decoder = Decoder(model, assistant=llama(seed=9, max_position_embeddings=16), costs=FLAT)
    assert decoder.assistant.costs.sizes[-1] <= 8
    assert decoder.complete([[5, 6, 7]], max_new_tokens=30, eos_token_id=None)[0].tokens == plain(
        model, [5, 6, 7], 30, eos_token_id=None
    )


def test_another_vocabulary_is_refused(model):
    with pytest.raises(InputError, match="vocabulary has 41 tokens, the model's 40"):
        Decoder(model, assistant=llama(vocab=41), costs=FLAT)
