"""Other tokens in place of pictures: the model runs as if the prompts had been written so, in every later word too."""

from __future__ import annotations

import copy

import pytest
import torch

from lessen.errors import InputError, NothingMatchedError
from lessen.tokens.visual import Stage, VisualPruning, prune_visual_tokens
from lessen.tokens.visual.free_video import FreeVideoLLM, Paths
from lessen.tokens.visual.slime import SliME
from lessen.tokens.visual.splice import Sight, splice_pictures
from seeing_models import PLACEHOLDER, prompts, seeing

VIDEO = FreeVideoLLM(Paths(slow=1, middle=1, fast=2, coarse=(1, 1), roi=0.5))


class Same(Sight):
    """Every token of every picture, as the host itself shows them."""

    kind = "same"

    def see(self, seen):
        return [seen.project(one).flatten(0, 1) for one in seen.of_prompt(seen.features)]


def slime(**more):
    torch.manual_seed(3)
    made = SliME(32, 32, side=2, overview=4, heads=2, **more).eval()
    with torch.no_grad():
        made.gate.weight.normal_()
    return made


SIGHTS = {"same": Same, "video": lambda: copy.deepcopy(VIDEO), "slime": slime, "kept": lambda: slime(keep=3)}


def run(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more)


def alone(batch, row, pictures):
    real = batch["attention_mask"][row].bool()
    one = {key: batch[key][row : row + 1, real] for key in ("input_ids", "attention_mask")}
    first = sum(pictures[:row])
    if pictures[row]:
        one["pixel_values"] = batch["pixel_values"][first : first + pictures[row]]
    return one


def test_all_tokens_in_their_places_change_nothing_but_rounding():
    model, batch = seeing("llava"), prompts("llava", (1, 0, 1))
    before = run(model, batch).logits
    patch = splice_pictures(model, Same())
    after = run(model, batch).logits
    real = batch["attention_mask"].bool()
    assert (after - before)[real].abs().max() < 1e-5
    patch.remove()
    assert torch.equal(run(model, batch).logits, before)
    assert "sight" not in dict(model.named_children())


@pytest.mark.parametrize("name", SIGHTS)
def test_prompts_of_other_lengths_share_a_batch_and_are_generated_on(name):
    pictures = (1, 3, 0, 2)
    model, batch = seeing("llava"), prompts("llava", pictures)
    patch = SIGHTS[name]().attach(model)
    together = run(model, batch).logits[:, -1]
    lengths, tokens = list(patch.lengths), list(patch.tokens)
    written = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)[:, -4:]
    for row in range(4):
        one = alone(batch, row, pictures)
        assert (run(model, one).logits[0, -1] - together[row]).abs().max() < 1e-4
        if pictures[row]:
            assert patch.lengths == [lengths[row]]
            words = int((one["input_ids"] != PLACEHOLDER).sum())
            assert lengths[row] == words + tokens[row]
        assert torch.equal(
            model.generate(**one, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, -4:], written[row]
        )


@pytest.mark.parametrize("name", SIGHTS)
def test_it_equals_the_untouched_decoder_on_the_same_embeddings_word_by_word(name):
    model, batch = seeing("llava"), prompts("llava", (1, 2, 0))
    plain = copy.deepcopy(model)
    patch = SIGHTS[name]().attach(model)
    ready = patch.prepare(batch)
    assert "pixel_values" not in ready
    assert "input_ids" not in ready
    wanted = run(plain, ready, use_cache=True)
    ours = run(model, batch, use_cache=True)
    assert torch.equal(ours.logits, wanted.logits)
    again = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)[:, -3:]
    assert torch.equal(again, plain.generate(**ready, max_new_tokens=3, min_new_tokens=3, do_sample=False))
    beams = model.generate(**batch, max_new_tokens=3, num_beams=2, do_sample=False)
    assert beams.shape[0] == 3


def test_copies_and_loaded_states_see_the_same():
    model, batch = seeing("llava"), prompts("llava", (3, 1, 2))
    slime().attach(model)
    before = run(model, batch).logits
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, batch).logits, before)
    other = seeing("llava", seed=5)
    SliME.from_config(model.slime.config()).attach(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other.eval(), batch).logits, before)


def test_misuse_is_one_line():
    model, batch = seeing("llava"), prompts("llava", (1, 2, 0))
    patch = copy.deepcopy(VIDEO).attach(model)
    ids = batch["input_ids"]
    few = ids.clone()
    few[0, (ids[0] == PLACEHOLDER).nonzero()[0]] = 5
    cases = [
        (lambda: VIDEO.attach(model), "another sight"),
        (lambda: run(model, batch | {"input_ids": few}), "prompt 0 holds 15 picture placeholders"),
        (lambda: run(model, batch | {"pixel_values": batch["pixel_values"][:2]}), "48 picture placeholders"),
        (lambda: run(model, {k: v for k, v in batch.items() if k != "pixel_values"}), "no picture was given"),
        (lambda: run(model, batch | {"pixel_values": batch["pixel_values"][:0]}), "at least one"),
        (lambda: run(model, batch | {"input_ids": ids.clamp(max=90)}), "no prompt holds a placeholder"),
        (lambda: run(model, batch, labels=ids), "labels were given"),
        (lambda: run(model, batch | {"attention_mask": batch["attention_mask"].flip(1)}), "pad on the left"),
        (lambda: run(model, batch | {"attention_mask": batch["attention_mask"][:, 1:]}), "give one of that shape"),
    ]
    for misuse, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            misuse()
        assert "\n" not in str(caught.value)
    prune_visual_tokens(model, VisualPruning((Stage(1, 0.5),)))
    with pytest.raises(InputError, match=r"remove\(\) one of both"):
        run(model, batch)
    patch.remove()
    run(model, batch)


def test_hosts_that_rearrange_pictures_and_other_widths_are_refused():
    for name in ("onevision", "smolvlm", "qwen2-vl"):
        with pytest.raises(InputError, match="prune between layers instead"):
            copy.deepcopy(VIDEO).attach(seeing(name))
    with pytest.raises(NothingMatchedError):
        copy.deepcopy(VIDEO).attach(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="width 16, and .* has 32"):
        SliME(32, 16, side=2, overview=4, heads=2).attach(seeing("llava"))
    model = seeing("llava")
    SliME(16, 32, side=2, overview=4, heads=2).attach(model)
    with pytest.raises(InputError, match="tower of width 16, and this one gives 32"):
        run(model, prompts("llava"))
