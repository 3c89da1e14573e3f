"""Inputs that do not fit are one line in every way of showing fewer tokens, and leave the next call as it was."""

from __future__ import annotations

import pytest
import torch

from fewer_tokens import WAYS
from lessen.errors import LessenError
from seeing_models import PLACEHOLDER, prompts, seeing


def written(batch, column, token):
    """The first prompt with another token at a place: the n-th placeholder or, from behind, the n-th word."""
    ids = batch["input_ids"].clone()
    seen = ids[0] == PLACEHOLDER
    ids[0, (seen if column >= 0 else ~seen).nonzero()[column]] = token
    return batch | {"input_ids": ids}


def pixels(batch, change):
    return batch | {"pixel_values": change(batch["pixel_values"])}


BAD = {
    "a placeholder too few": (lambda b: written(b, 0, 5), "placeholders"),
    "a placeholder too many": (lambda b: written(b, -1, PLACEHOLDER), "placeholders"),
    "a picture too few": (lambda b: pixels(b, lambda x: x[:-1]), r"32 picture placeholders and the pictures make 16 "),
    "a picture too many": (lambda b: pixels(b, lambda x: torch.cat([x, x[:1]])), r"32 .* the pictures make 48 "),
    "no picture": (lambda b: {k: v for k, v in b.items() if k != "pixel_values"}, "no picture was given"),
    "an empty list of frames": (lambda b: pixels(b, lambda x: []), "give every picture|at least one"),
    "no frame": (lambda b: pixels(b, lambda x: x[:0]), "give every picture|at least one"),
    "no placeholder": (lambda b: b | {"input_ids": b["input_ids"].clamp(max=90)}, "no prompt holds a placeholder"),
    "padding on the right": (lambda b: b | {"attention_mask": b["attention_mask"].flip(1)}, "pad on the left"),
    "a mask of another shape": (lambda b: b | {"attention_mask": b["attention_mask"][:, 1:]}, r"is \[3, 27\], input_ids"),
    "labels": (lambda b: b | {"labels": b["input_ids"]}, "labels were given"),
    "no prompt": (lambda b: {k: v[:0] for k, v in b.items()}, "no prompt holds a placeholder|hold 0 picture"),
}  # fmt: skip


@pytest.fixture(scope="module", params=WAYS)
def shown(request):
    model, batch = seeing("llava"), prompts("llava", (1, 0, 1))
    text = {key: batch[key][1:2] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain = model(**text).logits
        WAYS[request.param](model)
        return model, batch, model(**batch).logits, text, plain


@pytest.mark.parametrize("fault", BAD)
def test_it_is_one_line_and_the_next_call_is_as_before(shown, fault):
    model, batch, before, *_ = shown
    change, message = BAD[fault]
    with torch.no_grad(), pytest.raises(LessenError, match=message) as caught:
        model(**change(batch))
    assert "\n" not in str(caught.value)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)


def test_text_alone_is_what_it_was_before_the_patch_alone_and_beside_pictures(shown):
    model, _, before, text, plain = shown
    with torch.no_grad():
        assert torch.equal(model(**text).logits, plain)
    assert (before[1, -1] - plain[0, -1]).abs().max() < 2e-5


@pytest.mark.parametrize("way", ["deco", "slime", "hires", "adem", "free video"])
@pytest.mark.parametrize("name", ["onevision", "smolvlm", "qwen2-vl", "internvl", "mistral"])
def test_hosts_whose_projector_sees_no_grid_of_patches_are_refused_before_anything_is_changed(way, name):
    model = seeing(name)
    with pytest.raises(LessenError, match=r"merges|rearranges"):
        WAYS[way](model)
    with torch.no_grad():
        model(**prompts(name))
