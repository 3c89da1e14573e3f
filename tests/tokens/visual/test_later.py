"""Words after a prompt that became shorter: prompts of one length with other numbers of pictures, calls by hand, talks."""

from __future__ import annotations

import copy

import pytest
import torch

from fewer_tokens import WAYS
from lessen.errors import InputError
from lessen.tokens.visual.fused import ADEMVL
from seeing_models import PLACEHOLDER, TOKENS, picture_inputs, seeing

NEW = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def lines(*pictures, words=37):
    """Prompts of one length, so that no mask hides anything: ids [B, words] and their pictures."""
    chance = torch.Generator().manual_seed(3)
    rows = []
    for count in pictures:
        some = torch.randint(2, 90, (words - count * TOKENS["llava"],), generator=chance).tolist()
        rows.append(some[:2] + [PLACEHOLDER] * (count * TOKENS["llava"]) + some[2:])
    return {"input_ids": torch.tensor(rows)} | picture_inputs("llava", sum(pictures), chance, pictures)


def row_of(batch, row, pictures):
    first = sum(pictures[:row])
    shown = {"pixel_values": batch["pixel_values"][first : first + pictures[row]]} if pictures[row] else {}
    return {"input_ids": batch["input_ids"][row : row + 1]} | shown


def by_hand(model, batch, words):
    """Logits of the last of `words` int64 [B,q] after a prompt, the cache being the host's own."""
    with torch.no_grad():
        first = model(**batch, use_cache=True)
        return model(input_ids=words, past_key_values=first.past_key_values).logits[:, -1]


@pytest.mark.parametrize("way", WAYS)
def test_prompts_of_one_length_that_lose_other_numbers_of_tokens_go_on_as_one_by_one(way):
    model, pictures = seeing("llava"), (1, 0, 1) if way == "adem" else (2, 1, 0)
    WAYS[way](model)
    batch = lines(*pictures)
    both = model.generate(**batch, **NEW)
    words = both[:, -4:-2]
    hand = by_hand(model, batch, words)
    for row in range(3):
        one = row_of(batch, row, pictures)
        assert torch.equal(model.generate(**one, **NEW)[0], both[row])
        assert (by_hand(model, one, words[row : row + 1])[0] - hand[row]).abs().max() < 5e-5


@pytest.mark.parametrize("way", ["deco", "slime", "hires", "adem", "free video"])  # prunings choose by the last word
def test_a_conversation_goes_on_from_its_cache_as_if_it_were_read_anew(way):
    model = seeing("llava")
    WAYS[way](model)
    batch = lines(1, words=25)
    first = model.generate(**batch, **NEW, return_dict_in_generate=True)
    talk = torch.cat([first.sequences, torch.tensor([[7, 8, 9]])], 1)
    mask = torch.ones_like(talk)
    anew = model.generate(**batch | {"input_ids": talk}, attention_mask=mask, **NEW)
    cache = first.past_key_values
    held = cache.get_seq_length()
    went_on = model.generate(input_ids=talk, attention_mask=mask, past_key_values=cache, **NEW)
    assert torch.equal(went_on, anew)
    assert cache.get_seq_length() == held + 4 + 3


@pytest.mark.parametrize("way", ["deco", "slime", "hires", "adem", "free video"])
def test_pictures_after_the_first_call_and_another_batch_are_refused(way):
    model = seeing("llava")
    WAYS[way](model)
    batch = lines(1, words=25)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        for given, message in (
            (batch, "after .* prompts that a cache holds; give the whole conversation again"),
            ({"input_ids": torch.tensor([[5], [6]])}, "a cache of 1 .* prompts was handed a batch of 2"),
        ):
            with pytest.raises(InputError, match=message):
                model(**given, past_key_values=cache)


@pytest.mark.parametrize("way", WAYS)
def test_a_patched_model_trains_and_is_copied_afterwards(way):
    model = seeing("llava")
    WAYS[way](model)
    batch = lines(1, words=25)
    model(**batch).logits[:, -1].square().sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(**batch).logits, model(**batch).logits)


def test_towers_that_keep_their_class_token_or_join_layers_are_told():
    model = seeing("llava")
    model.config.vision_feature_select_strategy = "full"
    WAYS["deco"](model)
    batch = lines(1, words=25)
    batch["input_ids"][0, 2] = PLACEHOLDER
    ids = torch.cat([batch["input_ids"][:, :2], torch.full((1, 1), PLACEHOLDER), batch["input_ids"][:, 2:]], 1)
    with torch.no_grad(), pytest.raises(InputError, match="17 placeholders a picture are no grid of 4x4"):
        model(**batch | {"input_ids": ids})
    model = seeing("llava")
    model.config.vision_feature_layer = [-1, -2]
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(64, 32)
    ADEMVL(64, 32, 0, (16, 4), 8, 4).eval().attach(model)
    with torch.no_grad(), pytest.raises(InputError, match="they are of widths 32 and 64"):
        model(**lines(1, words=25))
