"""Pictures pooled before the projector: windows by hand, placeholders that fit, nothing left behind; and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.visual_host import find_visual_host
from lessen.errors import InputError
from lessen.tokens.visual import Stage, VisualPruning, pool_pictures, prune_visual_tokens
from lessen.tokens.visual.macs import LayerShape, prefill_macs, shapes
from seeing_models import PLACEHOLDER, prompts, seeing


def logits(model, batch, **more):
    with torch.no_grad():
        return model(**batch, **more).logits


def windows(features, side, target):
    """Adaptive windows one by one: [P, side*side, D] to [P, target*target, D]."""
    grid = features.view(len(features), side, side, -1)
    cut = [(i * side // target, math.ceil((i + 1) * side / target)) for i in range(target)]
    cells = [grid[:, a:b, c:d].flatten(1, 2).mean(1) for a, b in cut for c, d in cut]
    return torch.stack(cells, 1)


@pytest.mark.parametrize("target", [2, 3])
def test_the_language_model_sees_projected_means_of_windows(target):
    model, batch = seeing("llava"), prompts("llava")
    features = []
    handle = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    before = logits(model, batch)
    handle.remove()
    patch = pool_pictures(model, (target, target))
    fitted = patch.fit(batch)
    assert (fitted["input_ids"] == PLACEHOLDER).sum(1).tolist() == [n * target**2 for n in (1, 2, 0)]
    for row in range(3):  # the words stay, in order
        words = [ids[mask.bool() & (ids != PLACEHOLDER)] for ids, mask in (
            (b["input_ids"][row], b["attention_mask"][row]) for b in (batch, fitted)
        )]  # fmt: skip
        assert torch.equal(*words)
    pooled = logits(model, fitted)
    model.generate(**fitted, max_new_tokens=2)
    assert torch.equal(logits(model, batch), pooled)  # prompts of the processor fit themselves
    patch.remove()
    assert torch.equal(logits(model, batch), before)

    with torch.no_grad():
        means = model.model.multi_modal_projector(windows(features[0], 4, target))
        embeds = model.get_input_embeddings()(fitted["input_ids"])
        embeds[fitted["input_ids"] == PLACEHOLDER] = means.flatten(0, 1)
        wanted = model(inputs_embeds=embeds, attention_mask=fitted["attention_mask"]).logits
    real = fitted["attention_mask"].bool()
    assert (pooled - wanted)[real].abs().max() < 1e-5


def test_the_whole_grid_is_the_identity_and_pooling_goes_with_pruning():
    model, batch = seeing("llava"), prompts("llava")
    before = logits(model, batch)
    patch = pool_pictures(model, (4, 4))
    assert torch.equal(logits(model, patch.fit(batch)), before)
    patch.remove()
    patch = pool_pictures(model, (2, 2))
    pruned = prune_visual_tokens(model, VisualPruning((Stage(1, 0.5),)))
    fitted = patch.fit(batch)
    assert logits(model, fitted).shape[1] == pruned.tokens()[1] < fitted["input_ids"].shape[1]
    assert torch.equal(logits(model, batch), logits(model, fitted))
    batch["pixel_values"] = batch["pixel_values"][:2]
    with pytest.raises(InputError, match="48 picture placeholders and the pictures make 32 "):
        logits(model, batch)


def test_what_cannot_be_pooled():
    model, batch = seeing("llava"), prompts("llava")
    with pytest.raises(InputError, match="cannot pool a 4x4 grid to 5x4"):
        pool_pictures(model, (5, 4))
    patch = pool_pictures(model, (2, 2))
    with pytest.raises(InputError, match="already pooled"):
        pool_pictures(model, (2, 2))
    with pytest.raises(InputError, match="4 picture placeholders in a row are no whole number"):
        patch.fit(patch.fit(batch))
    patch.remove()
    for name in ("qwen2-vl", "smolvlm"):
        with pytest.raises(InputError, match="merges or rearranges"):
            pool_pictures(seeing(name), (2, 2))
    with pytest.raises(InputError, match="merges or rearranges"):
        pool_pictures(seeing("onevision"), (2, 2))
    pool_pictures(model, (4, 4), grid=(5, 5))
    with pytest.raises(InputError, match="16 tokens are not 0 leading tokens and a 5x5 grid"):
        logits(model, batch)


def count(model, batch):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(**batch, use_cache=True)["cache"]
    counts = counter.get_flop_counts()
    name = next(key for key in counts if key.endswith("model.language_model"))
    return sum(counts[name].values()) // 2, [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]


@pytest.mark.parametrize("how", ["plain", "fastv", "feather"])
def test_closed_forms_equal_the_counters(how):
    model = seeing("llava")
    model.set_attn_implementation("eager")
    full = {key: value[:1] for key, value in prompts("llava", (1,)).items()}
    stages = {
        "plain": (Stage(1, 1.0),),
        "fastv": (Stage(2, 0.25),),
        "feather": (Stage(1, 0.5, stride=3), Stage(3, 0.25)),
    }
    patch = prune_visual_tokens(model, VisualPruning(stages[how], rope=how == "fastv"))
    macs, held = count(model, full)
    text = full["input_ids"].shape[1] - 16
    scored = [16] if how != "feather" else [16, patch.tokens()[2] - text]
    layers = shapes(find_visual_host(model))
    assert prefill_macs(layers, patch.tokens(), scored) == macs
    assert [layer.cache_bytes(n, 4) for layer, n in zip(layers, patch.tokens(), strict=True)] == held


def test_published_shares():
    """LLaMA-7B: 57 % is FastV's own figure in another convention; the sheet's closed form gives 58.7 and 36.9 %."""
    layers = [LayerShape(4096, 4096, 4096, 11008)] * 32

    def share(visual, first, left):
        tokens = [visual + 64] * first + [left + 64] * (32 - first)
        return prefill_macs(layers, tokens) / prefill_macs(layers, [visual + 64] * 32)

    assert share(576, 3, 288) == pytest.approx(0.587, abs=5e-4)
    assert share(729, 3, 182) == pytest.approx(0.369, abs=5e-4)
    feather = [793] * 8 + [275 + 64] * 8 + [24 + 64] * 16
    assert prefill_macs(layers, feather) / prefill_macs(layers, [793] * 32) == pytest.approx(0.409, abs=5e-3)
    assert layers[0].cache_bytes(1) * 32 == 2**19  # 0.5 MB a token


def test_generation_goes_on_after_a_prompt_that_became_shorter():
    model, batch = seeing("llava"), prompts("llava")
    patch = pool_pictures(model, (2, 2))
    found = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch["input_ids"].shape[1] :]
    fitted = patch.fit(batch)
    wanted = model.generate(**fitted, max_new_tokens=5, do_sample=False)[:, fitted["input_ids"].shape[1] :]
    assert torch.equal(found, wanted)
    with pytest.raises(InputError, match="before they are pooled; hand it"):
        model.generate(**batch, max_new_tokens=3, do_sample=False, num_beams=2)
    beams = model.generate(**fitted, max_new_tokens=3, do_sample=False, num_beams=2)
    assert beams.shape[1] == fitted["input_ids"].shape[1] + 3
    with pytest.raises(InputError, match="pictures become fewer tokens"):
        logits(model, batch | {"labels": batch["input_ids"]})
    patch.remove()
    assert torch.isfinite(logits(model, batch)).all()
