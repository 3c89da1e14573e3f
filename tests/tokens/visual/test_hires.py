"""HiRes-LLaVA: slices that see each other, windows that look at their map, and counters."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.flops import CPU_ATTENTION_FLOPS
from lessen.errors import InputError
from lessen.tokens.pooling import pool_features
from lessen.tokens.visual.hires import HiResLLaVA, SelfMining, SliceRestore
from lessen.tokens.visual.tiles import fold, unfold
from seeing_models import prompts, seeing

SLICED = (5, 0, 5)


def hires(**more):
    torch.manual_seed(4)
    return HiResLLaVA(32, 32, (2, 2), (3, 3), **{"layers": (0, 1), "heads": 2, **more}).eval()


def woken(sight):
    with torch.no_grad():
        for name, one in sight.named_parameters():
            if not one.any():
                one.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return sight


def run(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more)


@pytest.mark.parametrize(("grid", "inner"), [((1, 1), (4, 4)), ((2, 3), (3, 5)), ((3, 1), (2, 2))])
def test_folding_is_undone_and_puts_neighbours_side_by_side(grid, inner):
    tiles = torch.randn(2 * grid[0] * grid[1], inner[0] * inner[1], 3)
    maps = fold(tiles, grid, inner)
    assert maps.shape == (2, 3, grid[0] * inner[0], grid[1] * inner[1])
    assert torch.equal(unfold(maps, grid), tiles)
    row, column = 2 * inner[0] // 2 % (grid[0] * inner[0]), grid[1] * inner[1] - 1
    tile = row // inner[0] * grid[1] + column // inner[1]
    assert torch.equal(
        maps[1, :, row, column], tiles[grid[0] * grid[1] + tile, row % inner[0] * inner[1] + column % inner[1]]
    )


def test_new_adapters_change_no_bit_of_the_tower_and_a_new_sampler_pools():
    model, batch = seeing("llava"), prompts("llava", SLICED)
    plain = copy.deepcopy(model)
    sight = hires()
    patch = sight.attach(model)
    features = []
    for one in (model, plain):
        projector = one.model.multi_modal_projector
        projector.register_forward_pre_hook(lambda _, x: features.append(x[0]), prepend=True)
    run(plain, batch)
    ready = patch.prepare(batch)
    assert torch.equal(features[0], features[1])
    assert patch.tokens == [16 + 1 + 9, 0, 16 + 1 + 9] == [sight.tokens(16), 0, sight.tokens(16)]
    whole = fold(features[0][1:5], (2, 2), (4, 4)).flatten(2).transpose(1, 2)
    with torch.no_grad():
        wanted = plain.model.multi_modal_projector(pool_features(whole, (8, 8), (3, 3)))[0]  # DeCo's windows
    line = ready["inputs_embeds"][0, -patch.lengths[0] :]
    start = int((batch["input_ids"][0][batch["attention_mask"][0].bool()] == 95).nonzero()[0])
    assert torch.allclose(line[start + 17 : start + 26], wanted, atol=1e-5)


def test_an_impulse_at_a_border_reaches_the_neighbour_slice_and_no_other_picture():
    adapter = SliceRestore(4, 2, 1)
    with torch.no_grad():
        adapter.local.weight.fill_(1.0)
    tiles = torch.zeros(8, 16, 4)
    tiles[0, 7] = 1.0  # picture 0, slice 0, row 1, last column
    made = unfold(adapter(fold(tiles, (2, 2), (4, 4)), (4, 4)), (2, 2))
    assert made[1].view(4, 4, 4)[:, :, 0].nonzero().tolist() == [[0, 0], [1, 0], [2, 0]]
    assert float(made[0, 7, 0].detach()) == 2.0
    assert not made[2:].any()
    assert torch.equal(adapter(fold(tiles[:1], (1, 1), (4, 4)), (4, 4)).detach()[0, :, 1, 3], torch.full((4,), 2.0))


def test_the_convolution_is_that_of_the_whole_map():
    adapter = SliceRestore(3, 2, 1)
    torch.nn.init.normal_(adapter.local.weight)
    tiles = torch.randn(4, 9, 3)
    whole = fold(tiles, (2, 2), (3, 3))
    wanted = whole + F.conv2d(whole, adapter.local.weight, padding=1, groups=3)
    assert torch.allclose(adapter(whole, (3, 3)), wanted, atol=1e-6)


def test_a_sampler_of_windows_of_one_is_the_identity_and_looks_at_its_own_window():
    sampler = SelfMining(16, 1)
    maps = torch.randn(2, 16, 4, 4)
    assert torch.allclose(sampler(maps, (4, 4)), maps.flatten(2).transpose(1, 2))
    with torch.no_grad():
        for part in sampler.attention.in_proj_weight.chunk(3):
            part.copy_(3 * torch.eye(16))
        sampler.attention.out_proj.weight.copy_(torch.eye(16))
        blocks = F.interpolate(torch.randn(1, 16, 2, 2), (4, 4), mode="nearest")
        pooled = F.adaptive_avg_pool2d(blocks, 2).flatten(2).transpose(1, 2)
        query, key = sampler.norm_query(pooled), sampler.norm_key(blocks.flatten(2).transpose(1, 2))
        seen = sampler.attention(query, key, key)[1][0].view(4, 4, 4)
    for place in range(4):
        window = seen[place, 2 * (place // 2) : 2 * (place // 2) + 2, 2 * (place % 2) : 2 * (place % 2) + 2]
        assert float(window.sum()) > 0.5


def test_a_batch_equals_one_by_one_and_generate_goes_on():
    model, batch = seeing("llava"), prompts("llava", SLICED)
    patch = woken(hires()).attach(model)
    together = run(model, batch).logits[:, -1]
    written = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)[:, -3:]
    for row in range(3):
        real = batch["attention_mask"][row].bool()
        one = {key: batch[key][row : row + 1, real] for key in ("input_ids", "attention_mask")}
        if SLICED[row]:
            one["pixel_values"] = batch["pixel_values"][5 * (row // 2) : 5 * (row // 2) + 5]
        assert (run(model, one).logits[0, -1] - together[row]).abs().max() < 1e-4
        assert torch.equal(
            model.generate(**one, max_new_tokens=3, min_new_tokens=3, do_sample=False)[0, -3:], written[row]
        )
    swapped = batch | {"pixel_values": batch["pixel_values"][[0, 2, 1, 3, 4, *range(5, 10)]]}
    assert (run(model, swapped).logits[:, -1] - together).abs().amax(1)[0] > 1e-3  # slices have places
    patch.remove()
    assert not model.model.vision_tower.state_dict().keys() & {"adapters"}


def test_multiply_adds_equal_the_counter():
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS) as counter, torch.no_grad():
        adapter = SliceRestore(8, 4, 2)
        adapter(torch.randn(1, 8, 6, 6), (3, 3))
    assert counter.get_total_flops() // 2 == adapter.macs(36, 9)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS) as counter, torch.no_grad():
        sampler = SelfMining(8, 2)
        sampler(torch.randn(1, 8, 6, 6), (2, 3))
    assert counter.get_total_flops() // 2 == sampler.macs(36, 6)


def test_saved_states_see_the_same_and_all_parts_learn():
    model, batch = seeing("llava"), prompts("llava", SLICED)
    woken(hires(layers=(0,))).attach(model)  # the host reads the tower before its last layer
    before = run(model, batch).logits
    other = seeing("llava", seed=9)
    HiResLLaVA.from_config(model.hires_llava.config()).attach(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other.eval(), batch).logits, before)
    model(**batch).logits[0, -1].square().sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in model.hires_llava.parameters())


def test_slices_without_an_overview_are_sampled_alone():
    model, batch = seeing("llava"), prompts("llava", (1, 2, 0))
    sight = HiResLLaVA(32, 32, (1, 1), (2, 2), layers=(0,), heads=2, overview=False).eval()
    patch = sight.attach(model)
    ready = patch.prepare(batch)
    assert patch.tokens == [sight.tokens(16), 2 * sight.tokens(16), 0] == [4, 8, 0]
    plain = seeing("llava")
    features = []
    plain.model.multi_modal_projector.register_forward_pre_hook(lambda _, x: features.append(x[0]))
    run(plain, batch)
    with torch.no_grad():
        wanted = plain.model.multi_modal_projector.forward(pool_features(features[0], (4, 4), (2, 2)))
    start = int((batch["input_ids"][0][batch["attention_mask"][0].bool()] == 95).nonzero()[0])
    found = ready["inputs_embeds"][0, -patch.lengths[0] :][start : start + 4]
    assert torch.allclose(found, wanted[0], atol=1e-5)


def test_misuse_is_one_line():
    model = seeing("llava")
    for bad in ({"heads": 3}, {"bottleneck": 5}):
        with pytest.raises(InputError, match="do not fit"):
            hires(**bad)
    with pytest.raises(InputError, match="do not fit"):
        HiResLLaVA(32, 32, (2,), (3, 3))
    with pytest.raises(InputError, match="before layer 7 of a tower of 2"):
        hires(layers=(7,)).attach(seeing("llava"))
    with pytest.raises(InputError, match="width 16, and"):
        HiResLLaVA(32, 16, (2, 2), (3, 3), heads=2).attach(model)
    hires().attach(model)
    with pytest.raises(InputError, match="the batch shows 3 pictures, and the grid of slices is 2x2"):
        model(**prompts("llava", (1, 2, 0)))
    with pytest.raises(InputError, match="prompt 0 shows 1 pictures"):
        model(**prompts("llava", (1, 4, 0)))
