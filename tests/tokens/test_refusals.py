"""What cannot be done is refused by name, before or at the first run; what is in place is told apart."""

from __future__ import annotations

import pytest
import torch

from lessen.architectures.vit import find_tower
from lessen.errors import InputError
from lessen.tokens import Merge, RankMerge, reduce_tokens
from lessen.tokens.attentive import AttentionMap
from lessen.tokens.macs import TowerShape
from lessen.tokens.search import RateSearch
from towers import IMAGES, TimmStyleViT, build, output, padded


def test_a_schedule_that_no_picture_fits_is_refused_at_the_first_run():
    model = build("plain")
    patch = reduce_tokens(model, Merge(removed=(1000,) * 4))  # how many tokens there are is not known yet
    with pytest.raises(InputError, match="block 0 cannot merge 1000 of 65 tokens"):
        model(IMAGES)
    patch.remove()
    reduce_tokens(model, RankMerge(pruned=(60, 30, 20, 9), merged=(50, 30, 20, 1)))
    with pytest.raises(InputError, match="block 3 has nobody left to merge with"):
        model(IMAGES)


def test_a_schedule_of_larger_pictures_is_refused_and_does_not_idle():
    model = build("plain")
    reduce_tokens(model, RankMerge(pruned=(200, 150, 120, 90), merged=(180, 140, 110, 80)))
    with pytest.raises(InputError, match="keeps 80 tokens and more, and there are 65"):
        model(IMAGES)


def test_an_old_patch_does_not_undo_a_newer_one():
    model = build("timm")
    old = reduce_tokens(model, Merge(removed=(4,) * 4))
    old.remove()
    new = reduce_tokens(model, Merge(removed=(2,) * 4))
    wanted = output(model)
    old.remove()
    assert torch.equal(output(model), wanted)
    assert new.state.count == 57
    with pytest.raises(InputError, match="already patched"):
        reduce_tokens(model, Merge(removed=(2,) * 4))
    new.remove()
    assert not any("forward" in block.__dict__ for block in model.blocks)


def test_what_others_put_in_a_blocks_place_is_named():
    hooks = pytest.importorskip("accelerate.hooks")
    model = build("plain")
    hooks.add_hook_to_module(model.blocks[0], hooks.ModelHook())
    with pytest.raises(InputError, match=r"blocks.0: something else has replaced the forward .*accelerate"):
        reduce_tokens(model, Merge(removed=(4,) * 4))
    hooks.remove_hook_from_module(model.blocks[0])
    hooks.add_hook_to_module(model, hooks.ModelHook())  # around the tower it does no harm
    patch = reduce_tokens(model, Merge(removed=(4,) * 4))
    output(model)
    assert patch.state.count == 49


def test_fused_projections_give_an_attention_map_too():
    model = TimmStyleViT().eval()
    given = AttentionMap(model)(model, IMAGES)
    assert given.shape == (3, 65)
    assert torch.allclose(given.sum(1), torch.ones(3), atol=1e-5)


def test_the_search_refuses_masks_too():
    model = build("plain")
    tower = find_tower(model)
    search = RateSearch(model, TowerShape(65, 48, 4, tower.hidden), granularity=1, target=0.6)
    with search, pytest.raises(InputError, match="handed attn_mask"):
        model.blocks[0](torch.randn(1, 9, 48), attn_mask=torch.zeros(1, 1, 1, 9))


@pytest.mark.parametrize("patched", [False, True])
def test_a_traced_model_keeps_its_batch_dynamic(patched):
    model = build("plain")
    if patched:
        reduce_tokens(model, Merge(removed=(4,) * 4))
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: batch},)).module()
        for images in (IMAGES[:1], torch.cat([IMAGES, IMAGES])):
            assert torch.allclose(program(images), model(images), atol=1e-5)


HOSTS = ["vit-classifier", "dinov2", "registers", "dinov3", "siglip", "clip"]


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_that_build_a_mask_when_traced_keep_their_batch_dynamic(name):
    model = build(name)
    reduce_tokens(model, Merge(removed=(6,) * 4))
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: batch},)).module()
        for images in (IMAGES[:1], torch.cat([IMAGES, IMAGES])):
            assert torch.allclose(program(images)[0], output(model, images), atol=1e-5)


def test_a_traced_padded_tower_follows_its_mask():
    model, given = build("siglip2"), padded()
    reduce_tokens(model, Merge(removed=(6,) * 4))
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    with torch.no_grad():
        program = torch.export.export(model, (), given, dynamic_shapes=dict.fromkeys(given, batch)).module()
        for rows in (slice(0, 1), slice(1, 3)):
            some = {key: value[rows] for key, value in given.items()}
            assert torch.allclose(program(**some).pooler_output, model(**some).pooler_output, atol=1e-5)


def test_a_mask_that_a_trace_cannot_tell_is_named():
    """The part around the blocks alone does not show whether anybody asked for a mask."""
    model = build("vit")
    reduce_tokens(model, Merge(removed=(6,) * 4))
    mask = torch.ones(3, 1, 65, 65, dtype=torch.bool)
    with pytest.raises(Exception, match="cannot be read from a trace"):
        torch.export.export(model, (IMAGES,), {"attention_mask": mask})
