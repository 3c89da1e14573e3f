"""Padded batches: padding weighs nothing, goes first and is nowhere seen; every other mask is refused by name."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import InputError
from lessen.tokens import Keep, Merge, RankMerge, reduce_tokens
from lessen.tokens.reducers import Pool
from lessen.tokens.state import NOBODY
from towers import IMAGES, MaskedViT, build, output, padded

NONE = Merge(removed=(0,) * 4)
REDUCERS = {
    "merge": Merge(removed=(8,) * 4),
    "hidden": Merge(removed=(8,) * 4, metric="hidden"),
    "random": Merge(removed=(8,) * 4, metric="random"),
    "unweighed": Merge(removed=(8,) * 4, proportional=False),
    "fuse": Keep(rates=(1.0, 0.7, 1.0, 0.7), scorer="received_attention"),
    "fuse-random": Keep(rates=(1.0, 0.7, 1.0, 0.7), scorer="random"),
}


def pooled(model, given):
    with torch.no_grad():
        return model(**given).pooler_output


def test_with_nothing_reduced_a_padded_batch_is_equal_bit_for_bit():
    model, given = build("siglip2"), padded()
    before = pooled(model, given)
    patch = reduce_tokens(model, NONE, example=given)
    assert torch.equal(pooled(model, given), before)
    assert patch.state.size.round().sum(1).tolist() == [64, 48, 30]
    full = {**given, "pixel_attention_mask": torch.ones(3, 64).long()}
    wanted = pooled(model, full)
    patch.remove()
    assert torch.equal(pooled(model, full), wanted)


@pytest.mark.parametrize("kind", REDUCERS)
def test_what_the_padding_holds_changes_nothing(kind):
    model, given = build("siglip2"), padded()
    patch = reduce_tokens(model, REDUCERS[kind])
    before = pooled(model, given)
    assert patch.state.size.round().sum(1).tolist() == [64, 48, 30]
    other = given["pixel_values"].clone()
    other[given["pixel_attention_mask"] == 0] = 7.0
    assert torch.allclose(pooled(model, {**given, "pixel_values": other}), before, atol=1e-5)
    assert torch.isfinite(before).all()


def test_padding_goes_before_any_patch_is_merged():
    """A picture with padding enough for the first block is what it was; one without has lost something."""
    model, given = build("siglip2"), padded()
    before = pooled(model, given)
    patch = reduce_tokens(model, Merge(removed=(8, 0, 0, 0)))
    after = pooled(model, given)
    same = (after - before).abs().amax(1)
    assert same[1] < 1e-5
    assert same[2] < 1e-5
    assert same[0] > 1e-4
    group = patch.state.group
    assert [len(set(group[i, :count].tolist())) for i, count in enumerate((64, 48, 30))] == [56, 48, 30]


def test_pictures_that_need_no_padding_are_as_alone():
    model, given = build("siglip2"), padded()
    reduce_tokens(model, Merge(removed=(4, 4, 4, 4)))
    alone = {name: value[:1] for name, value in given.items()}
    assert torch.allclose(pooled(model, alone), pooled(model, given)[:1], atol=1e-5)


def test_a_mask_of_padding_is_followed_wherever_a_host_hands_one():
    torch.manual_seed(0)
    model = MaskedViT().eval()
    seen = torch.ones(3, 65, dtype=torch.bool)
    seen[1, 40:] = False
    for mask in (seen[:, None, None], torch.where(seen, 0.0, -torch.inf)[:, None, None].expand(-1, -1, 65, -1)):
        with torch.no_grad():
            wanted = model(IMAGES, attn_mask=mask)
            patch = reduce_tokens(model, NONE, example={"images": IMAGES, "attn_mask": mask})
            assert torch.equal(model(IMAGES, attn_mask=mask), wanted)
            patch.remove()
            patch = reduce_tokens(model, Merge(removed=(12, 0, 0, 0)))
            assert torch.allclose(model(IMAGES, attn_mask=mask)[1], wanted[1], atol=1e-5)
            assert patch.state.size[1].amin() <= 13 * NOBODY
            patch.remove()


def test_other_masks_are_refused_by_what_they_do():
    torch.manual_seed(0)
    model = MaskedViT().eval()
    patch = reduce_tokens(model, NONE)
    full = torch.ones(3, 1, 65, 65)
    first = full.bool().clone()
    first[..., 0] = False
    weighed = torch.zeros(3, 1, 65, 65)
    weighed[..., 5] = -1.5
    cases = {
        "hides other keys from some tokens": full.bool().tril(),
        "hides the class token": first,
        "weighs keys": weighed,
        "of shape": torch.ones(3, 1, 65, 60, dtype=torch.bool),
        "no mask of 65": torch.ones(3, 65, dtype=torch.bool),
    }
    for message, mask in cases.items():
        with pytest.raises(InputError, match=f"TimmStyleBlock was handed a mask .*{message}"):
            model(IMAGES, attn_mask=mask)
    patch.remove()
    for reducer in (RankMerge(pruned=(60,) * 4, merged=(60,) * 4), Pool(blocks=4, grid=(8, 8), target=(4, 4))):
        patch = reduce_tokens(model, reducer)
        with pytest.raises(InputError, match="has no use for padded batches"):
            model(IMAGES, attn_mask=full.bool())
        patch.remove()
    reduce_tokens(model, NONE)
    model.blocks[0](torch.zeros(1, 65, 48))
    with pytest.raises(InputError, match="another mask"):
        model.blocks[1](torch.zeros(1, 65, 48), attn_mask=full.bool()[:1])
    assert output(model).shape == (3, 10)
