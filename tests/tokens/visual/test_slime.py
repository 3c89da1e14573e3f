"""SliME: grids of tiles, the router's closed forms, the gate, the resampler, and counters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.flops import CPU_ATTENTION_FLOPS
from lessen.architectures.visual_host import find_visual_host
from lessen.errors import InputError
from lessen.tokens.visual.resampler import Resampler, sines
from lessen.tokens.visual.slime import SliME, routed
from lessen.tokens.visual.splice import Seen
from lessen.tokens.visual.tiles import cut_tiles, fold, tile_grid, unfold
from seeing_models import prompts, seeing


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((336, 336), (1, 2)), ((336, 672), (1, 2)), ((672, 336), (2, 1)), ((672, 672), (2, 2)), ((336, 1344), (1, 4)),
        ((1344, 336), (4, 1)), ((672, 1008), (2, 3)), ((1008, 672), (3, 2)), ((336, 1680), (1, 5)), ((2000, 2000), (2, 3)),
    ],
)  # fmt: skip
def test_grids_of_ten_sizes(size, wanted):
    found = tile_grid(*size)
    if size[0] == size[1] and wanted[0] != wanted[1]:  # lying or standing, as much is seen and wasted
        assert found in (wanted, wanted[::-1])
    else:
        assert found == wanted


def test_tiles_are_cut_row_by_row_and_folded_back():
    picture = torch.arange(8 * 12.0).view(1, 8, 12).expand(3, -1, -1)
    tiles, grid = cut_tiles(picture, side=4)
    assert grid == (2, 3)
    assert tiles.shape == (7, 3, 4, 4)
    assert torch.allclose(tiles[1 + 1 * 3 + 2], picture[:, 4:, 8:], atol=1e-3)
    maps = torch.randn(2, 5, 8, 12)
    assert torch.equal(fold(unfold(maps, (2, 3)), (2, 3), (4, 4)), maps)
    assert torch.equal(unfold(maps, (2, 3))[3].T.view(5, 4, 4), maps[0, :, 4:, :4])
    wide, grid = cut_tiles(torch.ones(3, 4, 16), side=4)
    assert grid == (1, 4)
    assert torch.allclose(wide, torch.ones(5, 3, 4, 4))
    for misuse in (
        lambda: cut_tiles(torch.ones(4, 4)),
        lambda: tile_grid(0, 4),
        lambda: fold(torch.ones(5, 4, 2), (2, 2), (2, 2)),
    ):
        with pytest.raises(InputError):
            misuse()


def test_the_router_is_a_prefix_of_the_sorted_list_plus_one_in_place():
    torch.manual_seed(0)
    tokens, words = torch.randn(30, 8), torch.randn(5, 8)
    assert routed(tokens, words, 1.0).tolist() == list(range(30))
    scores = [float(sum(torch.dot(F.normalize(v, dim=0), F.normalize(t, dim=0)) for t in words)) for v in tokens]
    share = torch.tensor(scores).softmax(0)
    order = sorted(range(30), key=lambda i: -share[i])
    for top_p in (0.01, 0.3, 0.7, 0.95):
        total, count = 0.0, 0
        while count < 30 and total + float(share[order[count]]) <= top_p:
            total, count = total + float(share[order[count]]), count + 1
        assert routed(tokens, words, top_p).tolist() == sorted(order[: count + 1])
    for keep in (1, 7, 30, 99):
        assert routed(tokens, words, keep=keep).tolist() == sorted(order[:keep])
    assert torch.equal(routed(5 * tokens, 3 * words, 0.5), routed(tokens, words, 0.5))  # cosines
    tile = tokens.clone()
    tile[10:14] = words.sum(0)
    assert {10, 11, 12, 13} == set(routed(tile, words, keep=4).tolist())


def test_the_resampler_is_its_closed_form():
    made = Resampler(2, 8, 2).eval()
    features = torch.randn(3, 16, 8)
    places = (
        F.interpolate(sines(2, 8).view(1, 2, 2, 8).permute(0, 3, 1, 2), (4, 4), mode="bicubic")
        .flatten(2)
        .transpose(1, 2)
    )
    value = made.norm_key(features)
    wanted, _ = made.attention(
        (made.norm_query(made.query) + sines(2, 8)).expand(3, -1, -1), value + places, value, need_weights=False
    )
    assert torch.allclose(made(features, (4, 4)), made.norm_out(wanted), atol=1e-6)
    with torch.no_grad():  # with no scores every query is the projected mean of the features
        made.attention.in_proj_weight[:16] = 0
        mean = made.attention.out_proj(F.linear(value.mean(1), made.attention.in_proj_weight[16:]))
    assert torch.allclose(made(features, (4, 4)), made.norm_out(mean)[:, None].expand(-1, 4, -1), atol=1e-5)
    assert sum(p.numel() for p in Resampler(12, 1024, 8).parameters()) == 4 * 1024**2 + 4 * 1024 + 144 * 1024 + 6 * 1024


def made_of(model, counts=(3, 1), **more):
    torch.manual_seed(2)
    sight = SliME(32, 32, side=2, overview=4, heads=2, **more).eval()
    host = find_visual_host(model)
    words = [torch.randn(5, 32), torch.randn(2, 32)]
    return sight, Seen(host, torch.randn(sum(counts), 16, 32), list(counts), words, None)


def test_overview_separator_and_the_words_tokens_come_in_this_order():
    model = seeing("llava")
    sight, seen = made_of(model, keep=3)
    first, second = sight.see(seen)
    assert len(first) == sight.tokens(2, 16) == 16 + 1 + 3
    assert len(second) == sight.tokens(0, 16) == 16
    assert torch.equal(first[16], sight.separator)
    tiles = seen.project(sight.local(seen.features[1:3], (4, 4))).flatten(0, 1)
    kept = routed(tiles, seen.words[0], keep=3)
    assert torch.allclose(first[17:], tiles[kept])
    wide, plain = seen.project(sight.wide(seen.features[:1], (4, 4)))[0], seen.project(seen.features[0])
    assert torch.allclose(first[:16], (plain + wide) / 2 / (1 + 1e-6), atol=1e-5)  # an untrained gate mixes evenly
    sight.stage = "mlp"
    assert torch.allclose(sight.see(seen)[1], seen.project(seen.features[3]))
    sight.stage = "attention"
    assert torch.allclose(sight.see(seen)[0], wide)
    sight.stage = "local"
    assert len(sight.see(seen)[0]) == 4
    assert len(sight.see(seen)[1]) == 0


def test_the_overview_of_a_video_is_the_mean_of_its_frames():
    model = seeing("llava")
    sight, seen = made_of(model, keep=50, video=True)
    first, second = sight.see(seen)
    assert [len(first), len(second)] == [sight.tokens(3, 16), sight.tokens(1, 16)]
    mean = seen.features[:3].mean(0, keepdim=True)
    wanted = (seen.project(mean) + seen.project(sight.wide(mean, (4, 4)))) / 2
    assert torch.allclose(first[:16], wanted[0], atol=1e-5)


def test_multiply_adds_equal_the_counter():
    model = seeing("llava")
    sight, seen = made_of(model, (3,), top_p=1.0)
    seen.words = seen.words[:1]
    layers = [m for m in seen.host.projector.module.modules() if isinstance(m, nn.Linear)]
    projector = sum(m.in_features * m.out_features for m in layers)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS)
    with torch.no_grad(), counter:
        sight.keep = 5  # so that cosines are counted
        sight.see(seen)
    assert counter.get_total_flops() // 2 == sight.macs(2, 16, 5, projector)


def test_training_reaches_every_part_and_the_gate_is_noisy_only_then():
    model = seeing("llava")
    sight, seen = made_of(model)
    assert torch.equal(torch.cat(sight.see(seen)), torch.cat(sight.see(seen)))
    sight.train()
    assert not torch.equal(sight.see(seen)[0], sight.see(seen)[0])
    torch.cat(sight.see(seen)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in sight.parameters())


def test_misuse_is_one_line():
    model = seeing("llava")
    for bad in ({"top_p": 0.0}, {"keep": 0}, {"heads": 3}, {"temperature": 0.0}):
        with pytest.raises(InputError):
            SliME(32, 32, **bad)
    SliME(32, 32, side=2, overview=3, heads=2).attach(model)
    with pytest.raises(InputError, match="9 queries of the overview for 16 tokens of the tower; give overview = 4"):
        model(**prompts("llava"))
