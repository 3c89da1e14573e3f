"""Visual tokens left out between layers: equal to hiding them as keys, batched as one by one, cached at every depth."""

from __future__ import annotations

import copy

import pytest
import torch

from lessen.architectures.visual_host import find_visual_host
from lessen.errors import InputError, NothingMatchedError
from lessen.tokens.visual import Stage, VisualPruning, prune_visual_tokens
from seeing_models import NAMES, PLACEHOLDER, TOKENS, prompts, seeing

FASTV = VisualPruning((Stage(2, 0.5),))
FEATHER = VisualPruning((Stage(1, 0.5, stride=3), Stage(3, 0.25)), rope=False)
PRUNINGS = {
    "fastv": FASTV,
    "feather": FEATHER,
    "random": VisualPruning((Stage(1, 0.5), Stage(2, 0.5)), "random"),
    "uniform": VisualPruning((Stage(1, 0.5),), "uniform"),
    "determinant": VisualPruning((Stage(1, 0.5), Stage(3, 0.5)), "determinant", rope=False),
}
HOSTS = [(name, "feather") for name in NAMES] + [("llava", other) for other in PRUNINGS if other != "feather"]


def forward(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more)


def row_of(batch, row, pictures):
    """One prompt of the batch without its padding."""
    real = batch["attention_mask"][row].bool()
    alone = {key: batch[key][row : row + 1, real] for key in ("input_ids", "attention_mask")}
    first, count = sum(pictures[:row]), pictures[row]
    if count:
        alone["pixel_values"] = batch["pixel_values"][first : first + count]
    return alone


class HiddenKeys:
    """The reference: all tokens run, and what was left out is hidden as a key from its layer on, by hooks of its own."""

    def __init__(self, model, kept, full):
        self.full, self.handles = full, []
        for block in find_visual_host(model).blocks:
            if block.index in kept:
                self.handles.append(
                    block.module.register_forward_pre_hook(self.hide(kept[block.index]), with_kwargs=True)
                )

    def hide(self, kept):
        seen = torch.zeros(len(kept.columns), self.full, dtype=torch.bool)
        for row, (columns, real) in enumerate(zip(kept.columns, kept.real, strict=True)):
            seen[row, columns[real]] = True

        def hook(_module, arguments, keywords):
            hidden, mask = arguments[0], keywords["attention_mask"]
            total = mask.shape[-1]
            keys = torch.cat([seen, torch.ones(len(seen), total - self.full, dtype=torch.bool)], 1)
            own = torch.arange(total - hidden.shape[1], total)[:, None] == torch.arange(total)
            return arguments, keywords | {"attention_mask": (mask & keys[:, None, None]) | own}

        return hook

    def remove(self):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize(("name", "how"), HOSTS)
def test_leaving_out_equals_hiding_keys_in_the_prompt_and_the_next_token(name, how):
    model, batch = seeing(name), prompts(name)
    full = batch["input_ids"].shape[1]
    patch = prune_visual_tokens(model, PRUNINGS[how])
    ours = forward(model, batch, use_cache=True)
    kept = dict(patch.last.kept)
    word = ours.logits[:, -1:].argmax(-1)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 1, dtype=torch.int64)], 1)
    cache = next(ours[key] for key in ("cache", "past_key_values") if key in ours)
    assert [layer.keys.shape[2] for layer in cache.layers] == patch.tokens()
    assert patch.tokens()[-1] < full
    more = {"input_ids": word, "attention_mask": mask, "mm_token_type_ids": torch.zeros_like(word)}
    more = {key: value for key, value in more.items() if key in batch}
    if name == "qwen2-vl":  # generate() gives it the positions of new tokens, for time, row and column
        more["position_ids"] = (mask.sum(1, keepdim=True) - 1).expand(3, -1, -1)
    later = forward(model, more, cache=cache)
    patch.remove()

    hidden = HiddenKeys(model, kept, full)
    wanted = forward(model, batch, use_cache=True)
    cache = next(wanted[key] for key in ("cache", "past_key_values") if key in wanted)
    next_wanted = forward(model, more, cache=cache)
    hidden.remove()
    last = kept[max(kept)]
    at = last.columns[..., None].expand(-1, -1, wanted.logits.shape[-1])
    difference = (ours.logits - wanted.logits.gather(1, at))[last.real]
    assert difference.abs().max() < 1e-5
    assert (later.logits - next_wanted.logits).abs().max() < 1e-5
    plain = forward(model, batch)
    assert (plain.logits[:2, -1] - ours.logits[:2, -1]).abs().max() > 1e-3  # something was left out


@pytest.mark.parametrize("name", NAMES)
def test_with_nothing_left_out_and_after_removal_outputs_are_the_same_bit_for_bit(name):
    model, batch = seeing(name), prompts(name)
    before = forward(model, batch).logits
    patch = prune_visual_tokens(model, VisualPruning((Stage(1, 1.0), Stage(2, 1.0)), rope=False))
    assert torch.equal(forward(model, batch).logits, before)
    patch.remove()
    patch = prune_visual_tokens(model, FASTV)
    assert not torch.equal(forward(model, batch).logits[:, -1], before[:, -1])
    patch.remove()
    assert torch.equal(forward(model, batch).logits, before)


@pytest.mark.parametrize("how", PRUNINGS)
def test_a_batch_of_unequal_prompts_equals_one_by_one(how):
    pictures = (1, 2, 0, 1)
    model, batch = seeing("llava"), prompts("llava", pictures)
    prune_visual_tokens(model, PRUNINGS[how])
    together = forward(model, batch).logits
    words = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:]
    for row in range(len(pictures)):
        alone = row_of(batch, row, pictures)
        assert (forward(model, alone).logits[0, -1] - together[row, -1]).abs().max() < 1e-5
        own = model.generate(**alone, max_new_tokens=4, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert own.tolist() == words[row, : len(own)].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_generation_with_a_cache_equals_the_prompt_chosen_once(name):
    """Positions go on where the whole prompt ends, and what was chosen for the prompt stays chosen."""
    model, batch = seeing(name), prompts(name)
    patch = prune_visual_tokens(model, FASTV)
    done = model.generate(**batch, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    kept, full = dict(patch.last.kept), batch["input_ids"].shape[1]
    patch.remove()
    hidden = HiddenKeys(model, kept, full)
    wanted = model.generate(
        **batch, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    hidden.remove()
    assert torch.equal(done.sequences, wanted.sequences)
    for one, two in zip(done.logits, wanted.logits, strict=True):
        assert (one - two).abs().max() < 1e-5


def test_counts_follow_the_closed_form():
    model = seeing("llava")
    patch = prune_visual_tokens(model, FEATHER)
    alone = row_of(prompts("llava", (2,)), 0, (2,))
    full = alone["input_ids"].shape[1]
    forward(model, alone)
    text = full - 2 * TOKENS["llava"]
    first = patch.last.kept[1]
    survivors = [
        int(((first.columns >= p.start) & (first.columns < p.start + 16)).sum()) for p in patch.last.layout.pictures
    ]
    for picture, count in zip(patch.last.layout.pictures, survivors, strict=True):
        assert 8 <= count <= 12  # int(0.5 * 16) and up to 4 of the grid
        grid = [picture.start + 4 * i + j for i in (0, 3) for j in (0, 3)]
        assert set(grid) <= set(first.columns[0].tolist())
    wanted = [full, text + sum(survivors), text + sum(survivors), text + sum(n // 4 for n in survivors)]
    assert patch.tokens() == wanted


def test_text_alone_is_untouched_and_beams_copies_and_eager_attention_work():
    model = seeing("llava")
    text = prompts("llava", (0, 0))
    before = forward(model, text).logits
    prune_visual_tokens(model, FASTV)
    assert torch.equal(forward(model, text).logits, before)
    batch = prompts("llava")
    twin = copy.deepcopy(model)
    sdpa = forward(model, batch).logits
    assert torch.equal(forward(twin, batch).logits, sdpa)
    assert twin._lessen_visual_patch.tokens() == model._lessen_visual_patch.tokens()
    assert twin._lessen_visual_patch is not model._lessen_visual_patch
    model.set_attn_implementation("eager")
    last = model._lessen_visual_patch.last.kept[3].real
    assert (forward(model, batch).logits - sdpa)[last].abs().max() < 1e-4  # logits of up to 10
    assert model.generate(**batch, max_new_tokens=2, num_beams=2).shape[0] == 3


def changed(batch, **changes):
    return {key: value for key, value in (batch | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: changed(b, pixel_values=b["pixel_values"][:2]), "48 picture placeholders and the pictures make 32"),
        (lambda b: changed(b, pixel_values=None), "48 picture placeholders and no picture was given"),
        (lambda b: changed(b, input_ids=b["input_ids"].clamp_max(90)), "no prompt holds a placeholder"),
        (lambda b: changed(b, attention_mask=b["attention_mask"].flip(1)), "padded on the right"),
        (lambda b: changed(b, attention_mask=b["attention_mask"][:, 1:]), "give one of that shape"),
        (lambda b: changed(b, labels=b["input_ids"]), "train without the patch"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    model = seeing("llava")
    prune_visual_tokens(model, FASTV)
    batch = change(prompts("llava"))
    with pytest.raises(InputError, match=message):
        forward(model, batch)
    assert forward(model, prompts("llava")).logits.shape[0] == 3  # a call that failed leaves nothing behind


def test_other_inputs_that_do_not_fit():
    model, batch = seeing("llava"), prompts("llava")
    patch = prune_visual_tokens(model, VisualPruning((Stage(1, count=17),)))
    with pytest.raises(InputError, match="keeps 17 tokens of each picture, and one has 16"):
        forward(model, batch)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(InputError, match="inputs_embeds"):
        forward(model, {"inputs_embeds": embeds, "pixel_values": batch["pixel_values"]})
    with pytest.raises(InputError, match="one length for all layers"):
        model.generate(**batch, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(InputError, match="already pruned"):
        prune_visual_tokens(model, FASTV)
    patch.remove()
    with pytest.raises(InputError, match=r"stage at layer 4: .* has layers 0\.\.3"):
        prune_visual_tokens(model, VisualPruning((Stage(4, 0.5),)))
    prune_visual_tokens(model, FASTV)
    cache = forward(model, batch, use_cache=True)["cache"]
    cache.batch_select_indices(torch.tensor([0, 1]))
    with pytest.raises(InputError, match="a cache of 3 pruned prompts was handed a batch of 2"):
        forward(model, {"input_ids": batch["input_ids"][:2, -1:]}, cache=cache)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage(0, 0.5), "choose a layer from 1"),
        (lambda: Stage(1, 1.5), "between 0 and 1"),
        (lambda: Stage(1, count=-1), "0 or more"),
        (lambda: VisualPruning(()), "at least one"),
        (lambda: VisualPruning((Stage(2, 0.5), Stage(1, 0.5))), "each deeper"),
        (lambda: VisualPruning((Stage(1, 0.5),), "nearest"), "not one of attention"),
    ],
)
def test_stages_that_make_no_sense(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_hosts_without_visual_tokens_are_refused():
    from host_models import host

    with pytest.raises(InputError, match="needed here is vision-language"):
        prune_visual_tokens(host("llama"), FASTV)
    model = seeing("llava")
    model.model.config.image_token_id = None
    with pytest.raises(NothingMatchedError, match="no placeholder of pictures"):
        prune_visual_tokens(model, FASTV)
    model = seeing("onevision", layer_types=["sliding_attention"] + ["full_attention"] * 3, use_sliding_window=True)
    with pytest.raises(InputError, match="sliding_attention"):
        prune_visual_tokens(model, FASTV)
    assert PLACEHOLDER == 95


def test_towers_projectors_and_decoders_of_other_widths_are_refused():
    model = seeing("llava")
    projector = model.model.multi_modal_projector
    projector.linear_1 = torch.nn.Linear(48, 32)
    with pytest.raises(InputError, match="takes features of width 48 and its vision tower gives 32"):
        prune_visual_tokens(model, FASTV)
    projector.linear_1, projector.linear_2 = torch.nn.Linear(32, 32), torch.nn.Linear(32, 48)
    with pytest.raises(InputError, match="gives visual tokens of width 48 and .* reads 32"):
        prune_visual_tokens(model, FASTV)


def test_an_empty_list_of_pictures_is_refused():
    model = seeing("llava")
    prune_visual_tokens(model, FASTV)
    batch = prompts("llava")
    with pytest.raises(InputError, match="48 picture placeholders and the pictures make 0"):
        forward(model, batch | {"pixel_values": batch["pixel_values"][:0]})


def test_a_picture_and_a_film_in_one_prompt_are_two_things_seen():
    model, chance = seeing("qwen2-vl"), torch.Generator().manual_seed(0)
    film = 93
    rows = [
        [5, 92, *[PLACEHOLDER] * 16, 91, 6, 92, *[film] * 32, 91, 7],
        [0] * 17 + [8, 9, 92, *[film] * 32, 91, 10, 11],
    ]
    ids = torch.tensor(rows)
    batch = {
        "input_ids": ids, "attention_mask": (ids != 0).long(),
        "mm_token_type_ids": (ids == PLACEHOLDER).int() + 2 * (ids == film).int(),
        "pixel_values": torch.randn(64, 96, generator=chance), "image_grid_thw": torch.tensor([[1, 8, 8]]),
        "pixel_values_videos": torch.randn(256, 96, generator=chance), "video_grid_thw": torch.tensor([[2, 8, 8]] * 2),
    }  # fmt: skip
    patch = prune_visual_tokens(model, FASTV)
    both = forward(model, batch).logits[:, -1]
    pictures = patch.last.layout.pictures
    assert [(one.row, one.tokens, one.grid) for one in pictures] == [(0, 16, (4, 4)), (0, 32, None), (1, 32, None)]
    alone = {key: batch[key][1:, 17:] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    alone |= {"pixel_values_videos": batch["pixel_values_videos"][128:], "video_grid_thw": batch["video_grid_thw"][1:]}
    assert (forward(model, alone).logits[0, -1] - both[1]).abs().max() < 2e-5
    few = {"pixel_values_videos": batch["pixel_values_videos"][:128], "video_grid_thw": batch["video_grid_thw"][:1]}
    with pytest.raises(InputError, match=r"80 picture placeholders and the pictures make 48 visual tokens \(16, 32\)"):
        forward(model, batch | few)
