"""Free Video-LLM: token counts in closed form, regions that lie inside, frames by time, and its scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.errors import InputError
from lessen.tokens.visual.free_video import (
    FreeVideoLLM,
    Paths,
    clip_scorer,
    even_frames,
    nearest_frames,
    pair_pooled,
    region,
    sampled,
    video_tokens,
)
from seeing_models import prompts, seeing, transformers

PUBLISHED = "slow_3frms_spatial_1d_max_pool_roi8-middle_5frms_spatial_1d_max_pool_24x12-fast_50frms_4x4"


def test_the_published_string_gives_2648_tokens():
    paths = Paths.parse(PUBLISHED)
    assert paths.box((24, 24)) == (11, 21)
    assert paths.tokens(50, (24, 24)) == 3 * 231 + 5 * 231 + 50 * 16 == 2648
    assert Paths().tokens(50, (24, 24)) == 2648  # the true rectangle is 21 x 11
    assert Paths().box((24, 24)) == (21, 11)
    tokens, frame, patch = torch.randn(50, 576, 4), torch.randn(50), torch.randn(50, 576)
    for each in (paths, Paths()):
        assert len(video_tokens(tokens, (24, 24), frame, patch, each)) == 2648
    with pytest.raises(InputError, match="does not read slow_"):
        Paths.parse("slow_3frms")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 7), st.integers(1, 7), st.integers(0, 4), st.integers(0, 4), st.integers(0, 12),
    st.floats(0.05, 1.0), st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_counts_equal_the_closed_form(frames, rows, columns, slow, middle, fast, roi, official, seed):
    if slow + middle + fast == 0:
        return
    paths = Paths(slow, middle, fast, (1, 2), roi, official)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, rows * columns, 3, generator=draw)
    scores = torch.randn(frames, rows * columns, generator=draw)
    made = video_tokens(tokens, (rows, columns), scores[:, 0], scores, paths)
    assert len(made) == paths.tokens(frames, (rows, columns))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.1, 1.0), st.integers(0, 10**6))
def test_regions_lie_inside_and_are_as_large_as_said(rows, columns, share, seed):
    box = (max(1, round(rows * share**0.5)), max(1, round(columns * share**0.5)))
    places = region(
        torch.randn(3, rows * columns, generator=torch.Generator().manual_seed(seed)), (rows, columns), box, share
    )
    assert places.shape == (3, box[0] * box[1])
    for one in places:
        down, across = one // columns, one % columns
        assert 0 <= int(one.min()) <= int(one.max()) < rows * columns
        assert int(down.max() - down.min()) == box[0] - 1
        assert int(across.max() - across.min()) == box[1] - 1
        assert len(set(one.tolist())) == len(one)


def test_a_region_follows_the_corner_that_is_asked_for_and_the_official_one_is_exchanged():
    scores = torch.zeros(1, 24, 12)
    scores[0, :3, 9:] = 1.0  # upper right
    kept = region(scores.flatten(1), (24, 12), (11, 5), 9 / 288)[0]
    assert set(scores.flatten(1)[0].nonzero()[:, 0].tolist()) <= set(kept.tolist())
    index = torch.arange(24 * 24.0).view(1, 576, 1)
    near = torch.zeros(1, 576)
    near[0, 0] = 1.0
    for official, shape in ((False, (24, 12)), (True, (12, 24))):  # the published one reads two rows as one
        paths = Paths(1, 0, 0, roi=0.25, official=official)
        rows, columns = paths.box((24, 24))
        made = video_tokens(index, (24, 24), torch.zeros(1), near, paths)[:, 0]
        centre = torch.arange(288).view(shape)
        points = torch.cat([torch.tensor([0]), torch.arange(1, 72)])  # of equal scores the first
        top = min(max(0, int((points // shape[1]).float().mean()) - rows // 2), shape[0] - rows)
        left = min(max(0, int((points % shape[1]).float().mean()) - columns // 2), shape[1] - columns)
        wanted = centre[top : top + rows, left : left + columns].flatten()
        assert torch.equal(made, pair_pooled(index, (24, 24))[0, wanted, 0])


def test_the_whole_region_is_the_whole_map_and_paths_keep_the_order_of_time():
    frames = torch.arange(6.0).view(6, 1, 1).expand(6, 16, 1) + torch.arange(16.0).view(1, 16, 1) / 100
    scores = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.0, 0.3])
    made = video_tokens(frames, (4, 4), scores, torch.zeros(6, 16), Paths(2, 3, 4, (1, 1), roi=1.0))[:, 0]
    assert made[:16].int().tolist() == [1] * 8 + [3] * 8
    assert made[16:40].int().tolist() == [0] * 8 + [2] * 8 + [4] * 8
    assert made[40:].int().tolist() == [1, 2, 3, 5]
    assert torch.allclose(made[40:], torch.tensor([1.0, 2.0, 3.0, 5.0]) + 0.075)
    assert nearest_frames(scores, 0).tolist() == []
    assert nearest_frames(scores, 99).tolist() == list(range(6))
    assert even_frames(6, 4).tolist() == [0, 1, 3, 4]


def test_pooled_pairs_equal_max_pooling():
    tokens = torch.randn(3, 24, 5)
    wanted = F.max_pool1d(tokens.transpose(1, 2), 2, 2).transpose(1, 2)  # as published, along the line of tokens
    assert torch.equal(pair_pooled(tokens, (4, 6)), wanted)
    odd = F.max_pool2d(tokens[:, :15].transpose(1, 2).unflatten(2, (3, 5)), (1, 2)).flatten(2).transpose(1, 2)
    assert torch.equal(pair_pooled(tokens[:, :15], (3, 5)), odd)


@pytest.mark.parametrize(
    ("total", "frames", "wanted"), [(1, 3, [0, 0, 0]), (4, 4, [0, 1, 2, 2]), (101, 4, [12, 37, 62, 87])]
)
def test_frames_are_sampled_in_the_middle_of_even_stretches(total, frames, wanted):
    assert sampled(total, frames) == wanted


def test_few_frames_and_none():
    tokens, paths = torch.randn(1, 16, 4), Paths(roi=0.5)
    assert len(video_tokens(tokens, (4, 4), torch.zeros(1), torch.zeros(1, 16), paths)) == paths.tokens(1, (4, 4))
    for misuse, message in (
        (lambda: video_tokens(tokens[:0], (4, 4), torch.zeros(0), torch.zeros(0, 16), paths), "0 frames shows nothing"),
        (lambda: video_tokens(tokens, (4, 5), torch.zeros(1), torch.zeros(1, 16), paths), "no 4x5 grid"),
        (lambda: sampled(0, 4), "cannot be taken"),
        (lambda: Paths(0, 0, 0), "make no sense"),
        (lambda: Paths(roi=0.0), "make no sense"),
    ):
        with pytest.raises(InputError, match=message):
            misuse()


def test_a_host_sees_the_frames_its_dual_encoder_finds():
    model = seeing("llava")
    vision = model.config.vision_config.to_dict()
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    torch.manual_seed(1)
    dual = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    ).eval()
    questions = torch.randint(3, 49, (2, 90))
    batch = prompts("llava", (5, 3))
    sight = FreeVideoLLM(Paths(1, 0, 0, roi=0.5), clip_scorer(dual, questions))
    patch = sight.attach(model)
    with torch.no_grad():
        ready = patch.prepare(batch)
        written = model.generate(**batch, max_new_tokens=2, min_new_tokens=2)[:, -2:]
        assert torch.equal(model.generate(**ready, max_new_tokens=2, min_new_tokens=2), written)
        pooled = model.model.vision_tower(batch["pixel_values"]).pooler_output
        texts = dual.get_text_features(questions[:, :77])
        texts = getattr(texts, "pooler_output", texts)
        near = F.cosine_similarity(
            dual.visual_projection(pooled), texts.repeat_interleave(torch.tensor([5, 3]), 0), dim=1
        )
    assert patch.tokens == [sight.paths.tokens(5, (4, 4)), sight.paths.tokens(3, (4, 4))]
    for row, frames in enumerate((slice(0, 5), slice(5, 8))):
        alone = patch.prepare(
            prompts_of(
                batch, row, batch["pixel_values"][frames][near[frames].argmax()][None].expand(5 - 2 * row, -1, -1, -1)
            )
        )
        length = patch.lengths[0]
        assert torch.allclose(alone["inputs_embeds"][0, -length:], ready["inputs_embeds"][row, -length:], atol=1e-5)
    wrong = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision | {"hidden_size": 16}, text_config=text, projection_dim=8)
    )
    patch.remove()
    FreeVideoLLM(Paths(1, 0, 0), clip_scorer(wrong, questions)).attach(model)
    with pytest.raises(InputError, match="projects a width of 16"):
        model(**batch)


def prompts_of(batch, row, pixels):
    real = batch["attention_mask"][row].bool()
    return {
        "input_ids": batch["input_ids"][row : row + 1, real],
        "attention_mask": torch.ones(1, int(real.sum())),
        "pixel_values": pixels,
    }
